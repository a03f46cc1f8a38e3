"""The frozen MLP's activation between two products in eight bits: what the second product reads, and backward's.

    values · scale ≈ act(u),  slope = the code of act'(u)          forward, a scale a row
    values · scale ≈ dh ∘ act'(u)                                  backward, from the slopes

``u``, ``dh`` [M, H] in the products' dtype; ``values`` [M, H] e4m3, ``scale`` [M, 1]; ``slope`` [M, H] uint8 as in
:mod:`aim_kernels.wide_slope`, or [0] where it is not kept. No column is an adapter's, which stands beside. A program
has rows whole, as a row's scale wants.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_kernels.activations_triton import activation_slope, activation_value, slope_code, slope_of
from aim_kernels.adaptation import activate
from aim_kernels.choices import Activation
from aim_kernels.optional_triton import tl, triton
from aim_kernels.registration import operator
from aim_kernels.rows_triton import MAX_WIDTH, launch, row_tile
from aim_kernels.scaled_rows import scaled_rows_reference, store_scaled_rows
from aim_kernels.wide_slope import wide_slope_backward_reference, wide_slope_reference


def scaled_activation_reference(
    u: Tensor, activation: Activation, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``values``, ``scale`` and ``slope`` in plain torch."""
    y = activate(u.to(torch.promote_types(u.dtype, torch.float32)), activation)
    slope = wide_slope_reference(u, u.shape[1], activation, None)[1] if keep else u.new_empty(0, dtype=torch.uint8)
    return *scaled_rows_reference(y, dtype), slope


def scaled_slope_reference(dh: Tensor, slope: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``values`` and ``scale`` of the gradient in plain torch."""
    wide = dh.to(torch.promote_types(dh.dtype, torch.float32))
    return scaled_rows_reference(wide_slope_backward_reference(wide, slope, wide[:, :0], None), dtype)


@triton.jit
def scaled_activation_kernel(
    u_ptr: tl.tensor,
    values_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    slope_ptr: tl.tensor,
    M: tl.tensor,
    D: tl.constexpr,
    ACTIVATION: tl.constexpr,
    KEPT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    o_row, _, m_row, _, m_tile, o_tile = row_tile(M, D, ROWS, COLUMNS)
    b_u = tl.load(u_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    if KEPT:
        tl.store(slope_ptr + o_tile, slope_code(activation_slope(b_u, ACTIVATION)), mask=m_tile)
    store_scaled_rows(activation_value(b_u, ACTIVATION), values_ptr, scale_ptr, o_row, m_row, o_tile, m_tile)


@triton.jit
def scaled_slope_kernel(
    dh_ptr: tl.tensor,
    slope_ptr: tl.tensor,
    values_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    M: tl.tensor,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    o_row, _, m_row, _, m_tile, o_tile = row_tile(M, D, ROWS, COLUMNS)
    b_slope = slope_of(tl.load(slope_ptr + o_tile, mask=m_tile, other=0))  # [ROWS, COLUMNS]
    b_dh = tl.load(dh_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    store_scaled_rows(b_dh * b_slope, values_ptr, scale_ptr, o_row, m_row, o_tile, m_tile)


def _activation_triton(
    u: Tensor, activation: Activation, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    u = u.contiguous()
    values, scale, slope = _activation_fake(u, activation, dtype, keep)
    operands = {"u_ptr": u, "values_ptr": values, "scale_ptr": scale, "slope_ptr": slope}
    launch(scaled_activation_kernel, u, **operands, ACTIVATION=activation, KEPT=keep)
    return values, scale, slope


def _slope_triton(dh: Tensor, slope: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    dh = dh.contiguous()
    values, scale = _slope_fake(dh, slope, dtype)
    launch(scaled_slope_kernel, dh, dh_ptr=dh, slope_ptr=slope.contiguous(), values_ptr=values, scale_ptr=scale)
    return values, scale


def _fits(u: Tensor, *_: Any) -> bool:
    return u.shape[-1] <= MAX_WIDTH


def _activation_fake(
    u: Tensor, activation: Activation, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return *_slope_fake(u, u, dtype), u.new_empty(u.shape if keep else 0, dtype=torch.uint8)


def _slope_fake(dh: Tensor, slope: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scale = dh.new_empty((dh.shape[0], 1), dtype=torch.promote_types(dh.dtype, torch.float32))
    return dh.new_empty(dh.shape, dtype=dtype), scale


operator(
    "scaled_activation",
    "(Tensor u, str activation, ScalarType dtype, bool keep) -> (Tensor, Tensor, Tensor)",
    reference=scaled_activation_reference,
    triton=_activation_triton,
    fits=_fits,
    fake=_activation_fake,
)
operator(
    "scaled_slope",
    "(Tensor dh, Tensor slope, ScalarType dtype) -> (Tensor, Tensor)",
    reference=scaled_slope_reference,
    triton=_slope_triton,
    fits=_fits,
    fake=_slope_fake,
)
