"""Trunks: image Transformers over the frames of clips, each with the names of its weights."""

from aim_fast.models.record import Record
from aim_fast.models.trunk import PlainTrunk, PlainViT, TimmTrunk
from aim_fast.models.trunks.swin_record import Swin

# Records of trunks, of which the options are made; they import no torch.
TRUNKS: tuple[type[Record], ...] = (PlainTrunk, PlainViT, TimmTrunk, Swin)
