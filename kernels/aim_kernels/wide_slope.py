"""The widened MLP's activation where the frozen columns' derivatives are kept, a byte each, instead of their input.

    y = wide_activation(u, split),   slope[m, j] = act'(u[m, j])  for j < split
    du[m, j] = dy[m, j] · slope[m, j]  for j < split,   dy[m, j] · gelu'(own[m, j - split]) · factor[m]  beyond

``u``, ``y``, ``dy`` [M, H]; ``slope`` [M, split] uint8; ``own`` [M, H - split] are u's columns of the adapter, which
are few, formed again. A derivative of any of them lies in (-0.13, 1.13) and is kept as ⌊200·slope + 27.5⌋: 0 and
1, which most units are near, are exact, the error elsewhere is at most 0.0025, that of bf16 next to 1 being 0.002; 255
stands for NaN. The backward has no exponential in the frozen columns and reads three quarters as much as that of
:mod:`aim_kernels.wide_activation`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aim_kernels.activations_triton import (
    activation_slope,
    activation_value,
    gelu_slope,
    gelu_value,
    slope_code,
    slope_of,
)
from aim_kernels.choices import Activation
from aim_kernels.optional_triton import remembered, tl, triton
from aim_kernels.registration import alike, operator
from aim_kernels.wide_activation import (
    launch,
    single,
    wide_activation_backward_reference,
    wide_activation_reference,
    wide_tile,
)

STEPS, ZERO, INVALID = 200.0, 27.0, 255.0  # codes per unit of slope, the code of 0, the code of NaN


def wide_slope_reference(u: Tensor, split: int, activation: Activation, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """``y`` and ``slope`` in plain torch."""
    y = wide_activation_reference(u, split, activation, factor)
    wide = u[:, :split].to(torch.promote_types(u.dtype, torch.float32))
    slope = wide_activation_backward_reference(torch.ones_like(wide), wide, split, activation, None)
    code = (slope * STEPS + (ZERO + 0.5)).floor()
    return y, torch.where(slope.isnan(), INVALID, code).to(torch.uint8).contiguous()


def wide_slope_backward_reference(dy: Tensor, slope: Tensor, own: Tensor, factor: Tensor | None) -> Tensor:
    """``du`` in plain torch."""
    split = slope.shape[1]
    wide = slope.to(torch.promote_types(dy.dtype, torch.float32))
    frozen = torch.where(wide == INVALID, torch.nan, (wide - ZERO) / STEPS) * dy[:, :split]
    adapter = wide_activation_backward_reference(dy[:, split:], own, 0, "gelu", factor)
    return torch.cat([frozen.to(dy.dtype), adapter], 1)


@triton.jit
def wide_slope_forward_kernel(
    u_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    y_ptr: tl.tensor,
    slope_ptr: tl.tensor,
    M: tl.tensor,
    H: tl.tensor,
    split: tl.tensor,
    BLOCKS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    i_first, o_row, o_column, m_row, m_tile, o_tile = wide_tile(M, H, BLOCKS, ROWS, COLUMNS)
    m_frozen = m_row[:, None] & (o_column < split)[None, :]
    b_u = tl.load(u_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    b_y = activation_value(b_u, ACTIVATION)
    b_code = slope_code(activation_slope(b_u, ACTIVATION))
    tl.store(slope_ptr + o_row[:, None] * split + o_column[None, :], b_code, mask=m_frozen)
    if i_first + COLUMNS > split:
        b_own = gelu_value(b_u)
        if FACTOR:
            b_own *= tl.load(factor_ptr + o_row, mask=m_row, other=0.0)[:, None]
        b_y = tl.where((o_column < split)[None, :], b_y, b_own)
    tl.store(y_ptr + o_tile, b_y.to(y_ptr.dtype.element_ty), mask=m_tile)


@triton.jit
def wide_slope_backward_kernel(
    dy_ptr: tl.tensor,
    slope_ptr: tl.tensor,
    own_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    du_ptr: tl.tensor,
    M: tl.tensor,
    H: tl.tensor,
    split: tl.tensor,
    BLOCKS: tl.constexpr,
    FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    i_first, o_row, o_column, m_row, m_tile, o_tile = wide_tile(M, H, BLOCKS, ROWS, COLUMNS)
    m_frozen = m_row[:, None] & (o_column < split)[None, :]
    b_code = tl.load(slope_ptr + o_row[:, None] * split + o_column[None, :], mask=m_frozen, other=0)
    b_slope = slope_of(b_code)  # [ROWS, COLUMNS]
    if i_first + COLUMNS > split:
        m_own = m_tile & (o_column >= split)[None, :]
        o_own = o_row[:, None] * (H - split) + (o_column - split)[None, :]
        b_own = gelu_slope(tl.load(own_ptr + o_own, mask=m_own, other=0.0).to(tl.float32))
        if FACTOR:
            b_own *= tl.load(factor_ptr + o_row, mask=m_row, other=0.0)[:, None]
        b_slope = tl.where((o_column < split)[None, :], b_slope, b_own)
    b_dy = tl.load(dy_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    tl.store(du_ptr + o_tile, (b_dy * b_slope).to(du_ptr.dtype.element_ty), mask=m_tile)


def _forward_triton(u: Tensor, split: int, activation: Activation, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    u = u.contiguous()
    y, slope = _forward_fake(u, split, activation, factor)
    launch(
        wide_slope_forward_kernel,
        u,
        u_ptr=u,
        factor_ptr=u if factor is None else factor.contiguous(),
        y_ptr=y,
        slope_ptr=slope,
        split=split,
        ACTIVATION=activation,
        FACTOR=factor is not None,
    )
    return y, slope


def _backward_triton(dy: Tensor, slope: Tensor, own: Tensor, factor: Tensor | None) -> Tensor:
    return multiply(dy.contiguous(), slope, own, factor, False)


@remembered
def multiply(dy: Tensor, slope: Tensor, own: Tensor, factor: Tensor | None, in_place: bool) -> Tensor:
    """``du``, in the place of ``dy`` or new; ``dy`` is contiguous."""
    du = dy if in_place else alike(dy)
    launch(
        wide_slope_backward_kernel,
        dy,
        dy_ptr=dy,
        slope_ptr=slope.contiguous(),
        own_ptr=own.contiguous(),
        factor_ptr=dy if factor is None else factor.contiguous(),
        du_ptr=du,
        split=slope.shape[1],
        FACTOR=factor is not None,
    )
    return du


def _forward_cpp(u: Tensor, split: int, activation: Activation, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.ops.aim_cpu.activation_slope(u.contiguous(), split, activation, single(factor))


def _backward_cpp(dy: Tensor, slope: Tensor, own: Tensor, factor: Tensor | None) -> Tensor:
    parts = (slope.contiguous(), own.to(dy.dtype).contiguous())
    return torch.ops.aim_cpu.slope_backward(dy.contiguous(), *parts, single(factor))


def _forward_fake(u: Tensor, split: int, activation: Activation, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    return alike(u), u.new_empty((u.shape[0], split), dtype=torch.uint8)


def _backward_fake(dy: Tensor, slope: Tensor, own: Tensor, factor: Tensor | None) -> Tensor:
    return alike(dy)


operator(
    "wide_slope",
    "(Tensor u, int split, str activation, Tensor? factor) -> (Tensor, Tensor)",
    reference=wide_slope_reference,
    triton=_forward_triton,
    cpp=_forward_cpp,
    fake=_forward_fake,
)
operator(
    "wide_slope_backward",
    "(Tensor dy, Tensor slope, Tensor own, Tensor? factor) -> Tensor",
    reference=wide_slope_backward_reference,
    triton=_backward_triton,
    cpp=_backward_cpp,
    fake=_backward_fake,
)
