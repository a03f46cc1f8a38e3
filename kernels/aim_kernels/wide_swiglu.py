"""The activation of a widened MLP whose frozen columns are gated, in one pass over its hidden state.

    y[m, j] = silu(u[m, j]) · u[m, split + j]       for j < split     (frozen: gates, then as many values)
    y[m, j] = gelu(u[m, split + j]) · factor[m]     for j ≥ split     (exact GELU: the adapter's columns behind them)

``u`` [M, split + H]; ``y`` [M, H]; ``factor`` [M] float32 or None for 1. The backward gives ``du`` from ``dy`` and u,
which alone is kept: dgate = dy · value · silu'(gate), dvalue = dy · silu(gate). Source: Shazeer, GLU Variants Improve
Transformer, 2020.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_kernels.activations_triton import gelu_slope, gelu_value, sigmoid
from aim_kernels.adaptation import activate
from aim_kernels.optional_triton import tl, triton
from aim_kernels.registration import operator, ops
from aim_kernels.wide_activation import (
    check_factor,
    launch,
    single,
    wide_activation_backward_reference,
    wide_activation_reference,
    wide_tile,
)


def wide_swiglu(u: Tensor, split: int, factor: Tensor | None = None) -> Tensor:
    """``y`` [M, H] in u's dtype. Differentiable in ``u``. Raises ValueError for shapes that cannot be."""
    if u.ndim != 2 or not 0 <= 2 * split <= u.shape[1]:
        raise ValueError(f"expected u [M, split + H] and 0 ≤ split ≤ H, got {list(u.shape)} and {split}")
    check_factor(factor, u)
    return ops.wide_swiglu(u, split, factor)


def wide_swiglu_reference(u: Tensor, split: int, factor: Tensor | None) -> Tensor:
    """``y`` in plain torch, computed in float32 at least."""
    wide = u[:, : 2 * split].to(torch.promote_types(u.dtype, torch.float32))
    adapter = wide_activation_reference(u[:, 2 * split :], 0, "gelu", factor)
    return torch.cat([activate(wide, "swiglu").to(u.dtype), adapter], 1)


def wide_swiglu_backward_reference(dy: Tensor, u: Tensor, split: int, factor: Tensor | None) -> Tensor:
    """``du`` in plain torch."""
    gate, value = u[:, : 2 * split].to(torch.promote_types(u.dtype, torch.float32)).chunk(2, 1)
    sigmoid, dfrozen = torch.sigmoid(gate), dy[:, :split]
    dgate = dfrozen * value * (sigmoid + gate * sigmoid * (1 - sigmoid))
    frozen = torch.cat([dgate, dfrozen * gate * sigmoid], 1).to(u.dtype)
    adapter = wide_activation_backward_reference(dy[:, split:], u[:, 2 * split :], 0, "gelu", factor)
    return torch.cat([frozen, adapter], 1)


@triton.jit
def wide_swiglu_kernel(
    u_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    y_ptr: tl.tensor,
    M: tl.tensor,
    H: tl.tensor,
    split: tl.tensor,
    BLOCKS: tl.constexpr,
    FACTOR: tl.constexpr,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """``y_ptr`` is that of ``du`` in the backward. ``split`` behind a column lies its value, or the adapter's input."""
    i_first, o_row, o_column, m_row, m_tile, o_tile = wide_tile(M, H, BLOCKS, ROWS, COLUMNS)
    m_frozen = m_row[:, None] & (o_column < split)[None, :]
    o_gate = o_row[:, None] * (H + split) + o_column[None, :]
    b_gate = tl.load(u_ptr + o_gate, mask=m_frozen, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    b_value = tl.load(u_ptr + o_gate + split, mask=m_tile, other=0.0).to(tl.float32)
    b_s = sigmoid(b_gate, 1.0)
    b_silu = b_gate * b_s
    if BACKWARD:
        b_dy = tl.load(dy_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_dgate = b_dy * b_value * (b_s + b_silu * (1.0 - b_s))
        tl.store(y_ptr + o_gate, b_dgate.to(y_ptr.dtype.element_ty), mask=m_frozen)
        b_y = b_silu
    else:
        b_y = b_silu * b_value
    if i_first + COLUMNS > split:
        b_own = gelu_slope(b_value) if BACKWARD else gelu_value(b_value)
        if FACTOR:
            b_own *= tl.load(factor_ptr + o_row, mask=m_row, other=0.0)[:, None]
        b_y = tl.where((o_column < split)[None, :], b_y, b_own)
    if BACKWARD:
        tl.store(y_ptr + o_gate + split, (b_y * b_dy).to(y_ptr.dtype.element_ty), mask=m_tile)
    else:
        tl.store(y_ptr + o_tile, b_y.to(y_ptr.dtype.element_ty), mask=m_tile)


def _triton(dy: Tensor | None, u: Tensor, split: int, factor: Tensor | None) -> Tensor:
    u = u.contiguous()
    out = _forward_fake(u, split, factor) if dy is None else u.new_empty(u.shape)
    tiles = out if dy is None else dy.contiguous()  # [M, H]
    launch(
        wide_swiglu_kernel,
        tiles,
        u_ptr=u,
        dy_ptr=tiles,
        factor_ptr=u if factor is None else factor.contiguous(),
        y_ptr=out,
        split=split,
        FACTOR=factor is not None,
        BACKWARD=dy is not None,
    )
    return out


def _forward_triton(u: Tensor, split: int, factor: Tensor | None) -> Tensor:
    return _triton(None, u, split, factor)


def _forward_cpp(u: Tensor, split: int, factor: Tensor | None) -> Tensor:
    return torch.ops.aim_cpu.swiglu_forward(u.contiguous(), split, single(factor))


def _backward_cpp(dy: Tensor, u: Tensor, split: int, factor: Tensor | None) -> Tensor:
    return torch.ops.aim_cpu.swiglu_backward(dy.to(u.dtype).contiguous(), u.contiguous(), split, single(factor))


def _forward_fake(u: Tensor, split: int, factor: Tensor | None) -> Tensor:
    return u.new_empty((u.shape[0], u.shape[1] - split))


def _backward_fake(dy: Tensor, u: Tensor, split: int, factor: Tensor | None) -> Tensor:
    return u.new_empty(u.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int, Tensor | None], output: Tensor) -> None:
    u, ctx.split, factor = inputs
    ctx.save_for_backward(u, factor)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    u, factor = ctx.saved_tensors
    return ops.wide_swiglu_backward(dy, u, ctx.split, factor), None, None


operator(
    "wide_swiglu",
    "(Tensor u, int split, Tensor? factor) -> Tensor",
    reference=wide_swiglu_reference,
    triton=_forward_triton,
    cpp=_forward_cpp,
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_gradient,
)
operator(
    "wide_swiglu_backward",
    "(Tensor dy, Tensor u, int split, Tensor? factor) -> Tensor",
    reference=wide_swiglu_backward_reference,
    triton=_triton,
    cpp=_backward_cpp,
    fake=_backward_fake,
)
