"""Depthwise convolution over time of channels-last tokens: shifted copies of the frames, weighted channel by channel.

    v_t = bias + Σ_j kernel_j ∘ u_{t + j − c},   c = K // 2, frames outside of the clip are zero

``u``, ``v`` [B, T, N, C]; ``kernel`` [K, C], K odd; ``bias`` [C]. It is ``conv3d`` with a kernel (K, 1, 1), one channel
a group, without the two changes of layout. Backward: du is the same sum with the kernel reversed, dkernel_j = Σ g_t ∘
u_{t + j − c}. Kept for backward: u and the kernel. Source: Pan et al., ST-Adapter, NeurIPS 2022, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def temporal_convolution(u: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """``v`` [B, T, N, C] in the dtype of ``u``, differentiable in all three.

    Raises ValueError for a kernel that is not [K, C] with an odd K.
    """
    if kernel.ndim != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] != u.shape[-1]:
        raise ValueError(
            f"temporal_convolution of {list(u.shape)} takes a kernel [K, {u.shape[-1]}], K odd, not "
            f"{list(kernel.shape)}"
        )
    return _TemporalConvolution.apply(u, kernel, bias)


class _TemporalConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(u, kernel)
        ctx.dtype = bias.dtype
        return _shifted_sum(u, kernel.to(u.dtype), bias.to(u.dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        u, kernel = ctx.saved_tensors
        needs_u, needs_kernel, needs_bias = ctx.needs_input_grad
        wide = torch.promote_types(u.dtype, torch.float32)
        du = _shifted_sum(g, kernel.flip(0).to(g.dtype), None) if needs_u else None
        dkernel = None
        if needs_kernel:
            rows = [kernel.new_zeros(kernel.shape[1], dtype=wide)] * len(kernel)
            for j, here, there in _overlaps(u.shape[1], len(kernel)):
                rows[j] = (g[:, here] * u[:, there]).sum((0, 1, 2), dtype=wide)
            dkernel = torch.stack(rows).to(kernel.dtype)
        return du, dkernel, g.sum((0, 1, 2), dtype=wide).to(ctx.dtype) if needs_bias else None


def _shifted_sum(u: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    centre = kernel[len(kernel) // 2]
    out = u * centre if bias is None else torch.addcmul(bias, u, centre)
    for j, here, there in _overlaps(u.shape[1], len(kernel)):
        if j != len(kernel) // 2:
            out[:, here].addcmul_(u[:, there], kernel[j])
    return out


def _overlaps(frames: int, size: int) -> Iterator[tuple[int, slice, slice]]:
    """Of each row j of the kernel that reaches a frame: (j, frames t, frames t + j − c)."""
    for j in range(size):
        shift = j - size // 2
        if abs(shift) < frames:
            yield j, slice(max(0, -shift), frames - max(0, shift)), slice(max(0, shift), frames + min(0, shift))
