"""Rows in eight bits: every row of a matrix divided by a scale of its own and rounded to e4m3.

    values[m, j] = round(x[m, j] / scale[m]),   scale[m] = max(max_j |x[m, j]|, 1e-12) / 448

448 is the largest e4m3 number. A row's scale is a function of that row alone: nothing is carried from step to step,
so that a captured, a resumed and a plain step are the same. ``x`` [M, K]; ``values`` [M, K], ``scale`` [M, 1] float32.
Source: Micikevicius et al., FP8 Formats for Deep Learning, 2022.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_kernels.optional_triton import tl, triton
from aim_kernels.registration import operator, ops
from aim_kernels.rows_triton import MAX_WIDTH, launch, row_tile
from aim_kernels.weights import ScaledRows

EIGHT_BITS = torch.float8_e4m3fn
LARGEST, LEAST = 448.0, 1e-12  # of e4m3; the largest element of a row below which it counts as zero


def quantised(x: Tensor) -> ScaledRows:
    """``x`` [M, K] in eight bits."""
    return ScaledRows(*ops.scaled_rows(x, EIGHT_BITS))


def scaled_rows_reference(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``values`` in ``dtype`` and ``scale``, in plain torch; float64 keeps what the rounding takes."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(LEAST) / LARGEST
    return (wide / scale).to(dtype), scale


@triton.jit
def store_scaled_rows(
    b_x: tl.tensor,
    values_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    o_row: tl.tensor,
    m_row: tl.tensor,
    o_tile: tl.tensor,
    m_tile: tl.tensor,
) -> None:
    """Writes a tile that holds its rows whole, whose masked elements are zero."""
    b_scale = tl.maximum(tl.max(tl.abs(b_x), 1), 1e-12) / 448.0
    b_values = b_x / b_scale[:, None]
    tl.store(values_ptr + o_tile, b_values.to(values_ptr.dtype.element_ty), mask=m_tile)
    tl.store(scale_ptr + o_row, b_scale, mask=m_row)


@triton.jit
def bounded_scale(
    scale_ptr: tl.tensor, bound_ptr: tl.tensor, o_row: tl.tensor, m_row: tl.tensor
) -> tuple[tl.tensor, ...]:
    """The scales of a product's rows, and those that its results are in by their bound."""
    b_scale = tl.load(scale_ptr + o_row, mask=m_row, other=1.0)
    return b_scale, b_scale * tl.load(bound_ptr) + tl.load(bound_ptr + 1)


@triton.jit
def scaled_rows_kernel(
    x_ptr: tl.tensor,
    values_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    M: tl.tensor,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    o_row, _, m_row, _, m_tile, o_tile = row_tile(M, D, ROWS, COLUMNS)
    b_x = tl.load(x_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    store_scaled_rows(b_x, values_ptr, scale_ptr, o_row, m_row, o_tile, m_tile)


def _triton(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    values, scale = _fake(x, dtype)
    launch(scaled_rows_kernel, x, x_ptr=x, values_ptr=values, scale_ptr=scale)
    return values, scale


def _fits(x: Tensor, *_: Any) -> bool:
    return x.shape[-1] <= MAX_WIDTH


def _fake(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((x.shape[0], 1), dtype=wide)


operator(
    "scaled_rows",
    "(Tensor x, ScalarType dtype) -> (Tensor, Tensor)",
    reference=scaled_rows_reference,
    triton=_triton,
    fits=_fits,
    fake=_fake,
)
