"""ST-Adapter's modules in a frozen block, and the block's forward with them.

Shapes: x [B, T, N, D], of whose N tokens the first ``block.prefix`` are no patches. The mathematics is in
:mod:`aim_fast.models.methods.st_adapter`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aim_fast.models.block import untouched
from aim_kernels.choices import Memory
from aim_kernels.precision import compute_dtype
from aim_kernels.temporal_convolution import temporal_convolution


def run_convolved(block: Any, x: Tensor, memory: Memory, cls_only: bool) -> Tensor:
    before_attention, before_mlp = (getattr(block, f"adapter_pre_{place}", None) for place in ("attn", "mlp"))
    x = x if before_attention is None else _convolved(block, before_attention, x, memory)
    x = block.attended(x, memory, cls_only and block.backend == "fused")
    if before_mlp is not None:
        unread = cls_only and block.backend == "fused"
        x = untouched(x, before_mlp) if unread else _convolved(block, before_mlp, x, memory)
    x = block.expanded(x, memory)
    return x[:, :, :1] if cls_only else x


def _convolved(block: Any, adapter: Bottleneck, x: Tensor, memory: Memory) -> Tensor:
    """A(x) on all but the first ``block.prefix`` tokens of a frame."""
    if block.backend == "reference":
        return torch.cat([x[:, :, : block.prefix], adapter.on_patches(x[:, :, block.prefix :])], dim=2)
    if memory != "fast" and torch.is_grad_enabled():
        return checkpoint(adapter, x, block.prefix, use_reentrant=False, preserve_rng_state=False)
    return adapter(x, block.prefix)


class Bottleneck(nn.Module):
    """``x + fc2(conv(fc1 x))``; starts as x: the convolution is zero."""

    def __init__(self, dim: int, width: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, width)
        padding = tuple(size // 2 for size in kernel)
        self.conv = nn.Conv3d(width, width, tuple(kernel), padding=padding, groups=width)  # type: ignore[arg-type]
        self.fc2 = nn.Linear(width, dim)

    def reset_parameters(self) -> None:
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()
        for zero in (self.fc1.bias, self.fc2.bias, self.conv.weight, self.conv.bias):
            nn.init.zeros_(zero)  # type: ignore[arg-type]

    def on_patches(self, x: Tensor) -> Tensor:
        """As published, in plain torch: patches [B, T, P, D] to themselves."""
        return x + self.fc2(self._over_grid(self.fc1(x)))

    def forward(self, x: Tensor, prefix: int) -> Tensor:
        """Tokens [B, T, N, D] of which the first ``prefix`` of each frame pass.

        Those are multiplied too and then left out, for a copy of all others costs more.
        """
        dtype, conv = compute_dtype(x, x), self.conv
        u = F.linear(x.to(dtype), self.fc1.weight.to(dtype), self.fc1.bias.to(dtype))  # [B, T, N, C]
        if conv.kernel_size[1:] == (1, 1):
            v = temporal_convolution(u, conv.weight.flatten(1).t(), conv.bias)  # type: ignore[arg-type]
        else:
            v = torch.cat([u[:, :, :prefix], self._over_grid(u[:, :, prefix:])], dim=2)
        branch = F.linear(v, self.fc2.weight.to(dtype), self.fc2.bias.to(dtype))
        if not prefix:
            return x + branch
        patches = (torch.arange(x.shape[2], device=x.device) >= prefix)[:, None].to(dtype)  # [N, 1]
        return x + branch * patches

    def _over_grid(self, u: Tensor) -> Tensor:
        """The convolution over [B, T, P, C], P patches in a square."""
        side = math.isqrt(u.shape[2])
        weight, bias = self.conv.weight.to(u.dtype), self.conv.bias.to(u.dtype)  # type: ignore[union-attr]
        grid = u.unflatten(2, (side, side)).permute(0, 4, 1, 2, 3)  # [B, C, T, side, side]
        v = F.conv3d(grid, weight, bias, padding=self.conv.padding, groups=len(weight))
        return v.permute(0, 2, 3, 4, 1).flatten(2, 3)
