"""A ViT's block that is trained: attention and MLP, with droppath on both.

    x = x + f · attn(norm1 x);  x = x + f · mlp(norm2 x)        f drawn anew for each, once a clip

Input and output ``[B, T, N, D]``, attention among the N tokens of each of the T sequences of a clip. Names are timm's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from aim_fast.models.block import FrozenBlock, dropped
from aim_kernels.choices import Memory
from aim_kernels.vit_block import AIMViTBlock


class TrainedBlock(FrozenBlock, AIMViTBlock):
    """The engine's block without adapters; ``others`` are the arguments of :class:`aim_kernels.vit_block.AIMViTBlock`,
    its ``backend`` and ``memory`` among them."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0, **others: Any) -> None:
        super().__init__(dim, num_heads, mlp_ratio, adapters=(), drop_path=drop_path, drop_path_mode="clip", **others)
        self.requires_grad_(True)

    def forward(self, x: Tensor, cls_only: bool = False) -> Tensor:
        """``[B, T, N, D]`` to itself, or with ``cls_only`` to the first token of each sequence, ``[B, T, 1, D]``."""
        if cls_only and self.backend == "reference":
            return self(x)[:, :, :1]  # whose products are those of the published structure
        drops = {"space": self.drop_path(x), "mlp": self.drop_path(x)}
        return self.remembering(partial(_run, **drops), x, cls_only)


def _run(
    block: TrainedBlock, x: Tensor, memory: Memory, cls_only: bool, space: Tensor | None, mlp: Tensor | None
) -> Tensor:
    if space is None or mlp is None:
        return block.expanded(block.attended(x, memory, cls_only), memory)
    x = (x[:, :, :1] if cls_only else x) + dropped(block.attend(x, cls_only=cls_only), space)
    return x + dropped(block.expand(x, memory), mlp)
