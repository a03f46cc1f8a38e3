"""ActionCLIP's Transformer over frames, and its loss. The mathematics is in :mod:`aim_fast.models.heads.actionclip`."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from aim_fast.models.block import Transformer
from aim_fast.models.heads.video_prompts import reset_linear
from aim_kernels.modules import AIMBlock

_SHARPNESS = 10.0  # of the softmax that makes shares of equal labels
_NOWHERE = -1e4  # a logit that a softmax gives nothing, and that a product with nothing leaves finite


class Fusion(nn.Module):
    """Frame features ``[B, T, De]`` to those of the clip ``[B, De]``; ``frames`` positions, of which T are read."""

    def __init__(self, width: int, heads: int, frames: int, layers: int) -> None:
        super().__init__()
        self.frame_position_embeddings = nn.Embedding(frames, width)
        self.transformer = Transformer(
            AIMBlock(width, heads, adapters=(), activation="quick_gelu", eps=1e-12, backend="reference")
            for _ in range(layers)
        )

    def reset_parameters(self) -> None:
        nn.init.normal_(self.frame_position_embeddings.weight, std=0.02)
        for block in self.transformer.resblocks:
            block.reset_parameters()
            nn.init.xavier_uniform_(block.attn.in_proj_weight)
            reset_linear(block, nn.init.normal_)

    def forward(self, frames: Tensor) -> Tensor:
        x = (frames + self.frame_position_embeddings.weight[: frames.shape[1]])[:, None]  # as one frame of T tokens
        return (frames + self.transformer(x, 0, len(self.transformer.resblocks))[:, 0]).mean(1)


def of_all(rows: Tensor) -> Tensor:
    """The rows of all processes, first those of the first, with their gradients; each has as many."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return torch.cat(all_gather(rows.contiguous()))


def two_sided_loss(logits: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """The loss of each clip ``[B]`` from logits ``[2, B, A]``: of the clips against the A texts of all processes, and
    of their texts against all clips. ``kept`` [B]: which clips count."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    equal = _SHARPNESS * (labels[:, None] == of_all(labels)).to(logits.dtype)
    apart = ~of_all(kept)[None].expand_as(equal)
    shares = equal.masked_fill(apart, _NOWHERE).log_softmax(-1)
    found = logits.masked_fill(apart, _NOWHERE).log_softmax(-1)
    return (shares.exp() * (shares - found)).sum(-1).mean(0)
