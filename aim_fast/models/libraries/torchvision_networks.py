"""MViT, MViTv2 and Video Swin as torchvision has them.

A configuration of PySlowFast (depth, width, heads, the blocks in which width and heads double and the grid is halved)
becomes torchvision's list of blocks. With s = 8, halved at each of those blocks, keys and values are pooled by
(1, s, s); queries by (1, 2, 2) in them. Version 1 has a convolution on queries in those blocks alone, and doubles the
width in the MLP of the block before; version 2 has one in every block, and doubles it in the block's own attention.

Sources: Fan et al., MViT, ICCV 2021; Li et al., MViTv2, CVPR 2022; Liu et al., Video Swin Transformer, CVPR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from aim_fast.models.adapting import Adapting
from aim_fast.models.libraries.network import Classifying
from aim_fast.models.record import like

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class MultiscaleViT(Classifying):
    """``depth`` blocks from ``embed_dim`` channels and ``num_heads`` heads, both doubled in the blocks ``doubled``."""

    library: ClassVar[str] = "torchvision"
    classifier: ClassVar[str] = "head.1"

    version: Literal[1, 2] = 2
    depth: int = 16
    embed_dim: int = 96
    num_heads: int = 1
    doubled: Sequence[int] = (1, 3, 14)
    drop_path: float = like(Adapting, "drop_path")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.img_size % 4 or self.depth < 2 or not all(0 < number < self.depth for number in self.doubled):
            raise ValueError("img_size must be a multiple of 4, depth 2 or more, doubled numbers of blocks above 0")

    def build(self) -> nn.Module:
        from torchvision.models.video.mvit import MSBlockConfig, MViT

        blocks, width, heads, stride = [], self.embed_dim, self.num_heads, 8
        for number in range(self.depth):
            doubles, here = number in self.doubled, number + (self.version == 1)
            heads, stride = (heads * 2, max(stride // 2, 1)) if doubles else (heads, stride)
            into = width * 2 if here in self.doubled else width
            kernel = [3, 3, 3]
            blocks.append(
                MSBlockConfig(
                    num_heads=heads,
                    input_channels=width,
                    output_channels=into,
                    kernel_q=kernel if doubles or self.version == 2 else [],
                    kernel_kv=kernel,
                    stride_q=[1, 2, 2] if doubles else [1, 1, 1] if self.version == 2 else [],
                    stride_kv=[1, stride, stride],
                )
            )
            width = into
        second = self.version == 2
        return MViT(
            (self.img_size, self.img_size),
            self.num_frames,
            blocks,
            residual_pool=second,
            residual_with_cls_embed=False,
            rel_pos_embed=second,
            proj_after_attn=second,
            dropout=0.0,
            stochastic_depth_prob=self.drop_path,
            num_classes=self.num_classes,
        )

    def resized(self, name: str, table: Tensor, shape: Sequence[int]) -> Tensor | None:
        from aim_fast.models.weights.interpolation import interpolate_frames, interpolate_positions

        if name == "pos_encoding.spatial_pos":
            return interpolate_positions(table, shape[0], 0)
        if name == "pos_encoding.temporal_pos" or ".rel_pos_" in name:  # as torchvision brings the latter to a grid
            return interpolate_frames(table[None], shape[0])[0]
        return None

    def undecayed(self, name: str, dimensions: int) -> bool:
        return dimensions <= 1 and not name.startswith("pos_encoding.")


@dataclass(frozen=True)
class VideoSwin(Classifying):
    """Stages of ``depths`` blocks, from ``embed_dim`` channels, with ``window_size`` tokens (time, height, width)."""

    library: ClassVar[str] = "torchvision"
    classifier: ClassVar[str] = "head"

    num_frames: int = 32
    embed_dim: int = 96
    depths: Sequence[int] = (2, 2, 6, 2)
    num_heads: Sequence[int] = (3, 6, 12, 24)
    patch_size: Sequence[int] = (2, 4, 4)
    window_size: Sequence[int] = (8, 7, 7)
    drop_path: float = like(Adapting, "drop_path")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depths) != len(self.num_heads) or len(self.patch_size) != 3 or len(self.window_size) != 3:
            raise ValueError("depths and num_heads take a number a stage, patch_size and window_size three")

    def build(self) -> nn.Module:
        from torchvision.models.video import SwinTransformer3d

        return SwinTransformer3d(
            patch_size=list(self.patch_size),
            embed_dim=self.embed_dim,
            depths=list(self.depths),
            num_heads=list(self.num_heads),
            window_size=list(self.window_size),
            stochastic_depth_prob=self.drop_path,
            num_classes=self.num_classes,
        )

    def resized(self, name: str, table: Tensor, shape: Sequence[int]) -> Tensor | None:
        """Tables of biases [(2·time − 1)(2·side − 1)², heads], where time or side is the model's own."""
        import torch

        from aim_fast.models.weights.interpolation import interpolate_bias_table, interpolate_offsets

        if not name.endswith("relative_position_bias_table"):
            return None
        times, heads = 2 * self.window_size[0] - 1, table.shape[1]
        area = (2 * self.window_size[1] - 1) ** 2
        if self.window_size[1] == self.window_size[2] and len(table) % area == 0:  # other times
            return interpolate_offsets(table.reshape(-1, area * heads), times).reshape(-1, heads)
        if len(table) % times == 0 and math.isqrt(len(table) // times) ** 2 == len(table) // times:
            grids = table.reshape(times, -1, heads)
            return torch.cat([interpolate_bias_table(grid, self.window_size[1]) for grid in grids])
        return None

    def undecayed(self, name: str, dimensions: int) -> bool:
        return "norm" in name or name.endswith("relative_position_bias_table")
