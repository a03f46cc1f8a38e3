"""EVL: a decoder whose one query reads the last blocks of a frozen trunk, mixed over neighbouring frames.

Of each of the last M blocks the output z [B, T, N, D] and the queries q and keys k of its attention; x starts at a
learned query, [B, 1, D]:

    y = z + conv_t(z) + p                              depthwise over 3 frames; p [T, D]; and on patches alone
      + values(a(q_t, k_{t−1}), w1) + values(a(q_t, k_{t+1}), w2)          see :mod:`aim_kernels.relative_values`
    x = x + attention(norm1 x, keys and values norm3 y of all T·N tokens)
    x = x + fc2(dropout(quick_gelu(fc1(norm2 x))))

and the last x, normed, is the clip's feature. The order of frames is in the convolution, in p and in w1, w2. The query
is the decoder's own, so trunks without a class token are read in the same way; queries and keys that a trunk rotates or
norms are taken as its attention reads them. On trunks other than CLIP the form is ours.
Source: Lin et al., Frozen CLIP Models are Efficient Video Learners, ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from aim_fast.models.methods.beside import Beside
from aim_fast.models.record import argument

if TYPE_CHECKING:
    from torch import Tensor

_PUBLISHED = {"side.norm.": "proj.0.", "side.": "decoder.", "fc_cls.": "proj.2.", "": "visual."}


@dataclass(frozen=True)
class EVL(Beside):
    """A decoder beside the last blocks.

    Args:
        decoder_layers: M, as many as the trunk has where it has fewer.
        decoder_heads: the trunk's number where there is none. decoder_dropout: inside of its MLPs.
    """

    heading: ClassVar[str] = "EVL"
    name: ClassVar[str] = "evl"
    line: ClassVar[str] = "a decoder that reads the frozen trunk's last blocks, beside it (ECCV 2022)"
    blocks_alike: ClassVar[bool] = False
    decays_all: ClassVar[bool] = True
    reads: ClassVar[str] = "side.cls_token"
    renamed: ClassVar[Mapping[str, str]] = {theirs: ours for ours, theirs in _PUBLISHED.items()}

    decoder_layers: int = argument(4, "EVL: last blocks of the trunk that its decoder reads, a layer each", ge=1)
    decoder_heads: int | None = argument(None, told=False)
    decoder_dropout: float = argument(0.5, "EVL: dropout inside of its decoder's MLPs", structure=False, ge=0, lt=1)

    def fitted(self, depth: int) -> Self:
        return replace(self, decoder_layers=min(self.decoder_layers, depth))

    def network(self, model: Any) -> Any:
        from aim_fast.models.methods.evl_decoder import Decoder

        return Decoder(model, self.decoder_layers, self.decoder_heads, self.decoder_dropout)

    def lowest(self, depth: int) -> int:
        return depth - self.decoder_layers

    def published_name(self, name: str) -> str | None:
        found = next(ours for ours in _PUBLISHED if name.startswith(ours))
        return _PUBLISHED[found] + name.removeprefix(found)

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        return any("temporal_pos_embed." in name for name in names)

    @classmethod
    def told(cls, tensors: Mapping[tuple[int, str], Tensor]) -> dict[str, Any]:
        positions = [tensor for (_, name), tensor in tensors.items() if ".temporal_pos_embed." in name]
        return {"decoder_layers": len(positions), "num_frames": len(positions[0])} if positions else {}
