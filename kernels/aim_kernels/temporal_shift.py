"""Groups of channels of keys and values taken from the frames before and after.

    packed qkv [B, T, N, 3D]; of k and of v each, group g (from 0) is channels [g·size, (g + 1)·size), and comes from
    g = 0: t − 1,  1: t + 1,  2: t − 2,  3: t + 2;   frames whose source lies outside of the clip keep their own

Nothing else is changed. Backward is its adjoint. Kept for backward: nothing. One copy of qkv each way. Source: Li et
al., ZeroI2V, ECCV 2024, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def temporal_shift(qkv: Tensor, groups: int, size: int) -> Tensor:
    """``qkv`` with ``groups`` groups of ``size`` channels shifted, differentiable.

    Raises ValueError for groups that k has no room for.
    """
    if not 0 < groups * size <= qkv.shape[-1] // 3:
        raise ValueError(f"temporal_shift of {list(qkv.shape)} has no room for {groups} groups of {size} channels")
    return _TemporalShift.apply(qkv, groups, size)


class _TemporalShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, groups: int, size: int) -> Tensor:
        ctx.sizes = groups, size
        out = qkv.clone()
        for channels, before, by in _moves(qkv, groups, size):
            if before:
                out[:, by:, :, channels] = qkv[:, :-by, :, channels]
            else:
                out[:, :-by, :, channels] = qkv[:, by:, :, channels]
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        out, (groups, size) = g.clone(), ctx.sizes
        for channels, before, by in _moves(g, groups, size):
            here = g[..., channels]
            moved = torch.zeros_like(here)
            if before:  # frame s gave frame s + by, and one of the first kept its own
                moved[:, :-by] += here[:, by:]
                moved[:, :by] += here[:, :by]
            else:
                moved[:, by:] += here[:, :-by]
                moved[:, -by:] += here[:, -by:]
            out[..., channels] = moved
        return out, None, None


def _moves(qkv: Tensor, groups: int, size: int) -> list[tuple[slice, bool, int]]:
    """Channels, whether they come from frames before, and from how far; but for groups that reach out of the clip."""
    width, found = qkv.shape[-1] // 3, []
    for group in range(groups):
        by = group // 2 + 1
        for start in (width, 2 * width) if by < qkv.shape[1] else ():
            first = start + group * size
            found.append((slice(first, first + size), group % 2 == 0, by))
    return found
