"""The frozen MLP's products in eight bits beside its activation, in what the next product reads: scaled rows.

    hidden · hidden_scale ≈ act(y Wᵀ + b),   slope = the code of act' there        forward
    du · du_scale         ≈ (dout V) ∘ slope                                       backward

y, W, dout and Vᵀ as values and scales, ``values`` [rows, D], ``weight`` [M, D], with ``bound`` [2] of the weight, all
of :mod:`aim_kernels.scaled_product`; ``slope`` [rows, M] as in :mod:`aim_kernels.wide_slope`. A row's scale is that of
its bound, known before a tile of it is written. No column is an adapter's, which stands beside. By the committed block
shapes a library multiplies and a pass over its result follows; what a tuning may find faster has the pass within the
product (:mod:`aim_kernels.wide_product_triton`) and moves 4 M bytes a row less each way. These are parts of functions
whose backward is written out and have no gradient of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_kernels import wide_product_triton
from aim_kernels.activations_triton import activation_slope, activation_value, slope_code, slope_of
from aim_kernels.adaptation import activate
from aim_kernels.block_shapes import LIBRARY, BlockShape, block_shape
from aim_kernels.choices import Activation
from aim_kernels.optional_triton import tl, triton
from aim_kernels.registration import architecture, operator
from aim_kernels.rows_triton import MAX_WIDTH, launch, row_tile
from aim_kernels.scaled_product import multiplied, multiplied_reference
from aim_kernels.scaled_rows import bounded_scale
from aim_kernels.weights import ScaledRows
from aim_kernels.wide_product_triton import Scales
from aim_kernels.wide_slope import wide_slope_backward_reference, wide_slope_reference


def scaled_wide_product_reference(
    values: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bound: Tensor,
    bias: Tensor,
    activation: Activation,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``hidden`` in the dtype of ``values``, its scale, and ``slope``, [0] unless ``keep``, in plain torch; the product
    is rounded to the dtype of ``bias``."""
    u = multiplied_reference(ScaledRows(values, scale), ScaledRows(weight, weight_scale), bias, bias.dtype)
    y = activate(u.to(scale.dtype), activation)
    slope = wide_slope_reference(u, u.shape[1], activation, None)[1] if keep else u.new_empty(0, dtype=torch.uint8)
    return *_written(y, values, scale, bound), slope


def scaled_wide_product_backward_reference(
    values: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bound: Tensor,
    slope: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """``du`` and its scale in plain torch; the product is rounded to ``dtype``."""
    dhidden = multiplied_reference(ScaledRows(values, scale), ScaledRows(weight, weight_scale), None, dtype)
    wide = dhidden.to(scale.dtype)
    return _written(wide_slope_backward_reference(wide, slope, wide[:, :0], None), values, scale, bound)


def _written(x: Tensor, values: Tensor, scale: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    scale = scale * bound[0] + bound[1]
    return (x / scale).to(values.dtype), scale


@triton.jit
def scaled_activation_kernel(
    u_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bound_ptr: tl.tensor,
    values_ptr: tl.tensor,
    out_scale_ptr: tl.tensor,
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
    _, b_scale = bounded_scale(scale_ptr, bound_ptr, o_row, m_row)
    b_values = activation_value(b_u, ACTIVATION) / b_scale[:, None]
    tl.store(values_ptr + o_tile, b_values.to(values_ptr.dtype.element_ty), mask=m_tile)
    tl.store(out_scale_ptr + o_row, b_scale, mask=m_row)


@triton.jit
def scaled_slope_kernel(
    dh_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bound_ptr: tl.tensor,
    slope_ptr: tl.tensor,
    values_ptr: tl.tensor,
    out_scale_ptr: tl.tensor,
    M: tl.tensor,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    o_row, _, m_row, _, m_tile, o_tile = row_tile(M, D, ROWS, COLUMNS)
    b_slope = slope_of(tl.load(slope_ptr + o_tile, mask=m_tile, other=0))  # [ROWS, COLUMNS]
    b_dh = tl.load(dh_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    _, b_scale = bounded_scale(scale_ptr, bound_ptr, o_row, m_row)
    b_values = b_dh * b_slope / b_scale[:, None]
    tl.store(values_ptr + o_tile, b_values.to(values_ptr.dtype.element_ty), mask=m_tile)
    tl.store(out_scale_ptr + o_row, b_scale, mask=m_row)


def _triton(
    values: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bound: Tensor,
    bias: Tensor,
    activation: Activation,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = product_shape("forward", values, weight)
    if shape != LIBRARY:
        scales = Scales(scale, weight_scale, bound, torch.empty_like(scale))
        how = (weight.shape[0], activation, None, keep, shape, scales)
        hidden, slope = wide_product_triton.forward(values, weight, bias, *how)
        return hidden, scales.out_scale, slope
    u = multiplied(ScaledRows(values, scale), ScaledRows(weight, weight_scale), bias, bias.dtype)
    hidden, out_scale, slope = _fake(values, scale, weight, weight_scale, bound, bias, activation, keep)
    written = {"values_ptr": hidden, "out_scale_ptr": out_scale, "slope_ptr": slope}
    given = {"u_ptr": u, "scale_ptr": scale, "bound_ptr": bound, "ACTIVATION": activation, "KEPT": keep}
    launch(scaled_activation_kernel, u, **given, **written)
    return hidden, out_scale, slope


def _backward_triton(
    values: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bound: Tensor,
    slope: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    shape = product_shape("backward", values, weight)
    if shape != LIBRARY:
        scales = Scales(scale, weight_scale, bound, torch.empty_like(scale))
        du = wide_product_triton.backward(values, weight, slope, values, None, shape, scales)
        return du, scales.out_scale
    dh = multiplied(ScaledRows(values, scale), ScaledRows(weight, weight_scale), None, dtype)
    du, out_scale = _backward_fake(values, scale, weight, weight_scale, bound, slope, dtype)
    given = {"dh_ptr": dh, "slope_ptr": slope.contiguous(), "scale_ptr": scale, "bound_ptr": bound}
    launch(scaled_slope_kernel, dh, **given, values_ptr=du, out_scale_ptr=out_scale)
    return du, out_scale


def product_shape(direction: str, values: Tensor, weight: Tensor) -> BlockShape:
    """The tile of a product, or LIBRARY, which is no choice where no tile serves."""
    width = weight.shape[0]
    if not wide_product_triton.fits(values, width, width):
        return LIBRARY
    name = f"scaled_wide_product_{direction}"
    return block_shape(name, width, architecture(values), values.dtype.itemsize, entry="wide_product")


def _fits(values: Tensor, scale: Tensor, weight: Tensor, *_: Any) -> bool:
    return weight.shape[0] <= MAX_WIDTH


def _fake(
    values: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bound: Tensor,
    bias: Tensor,
    activation: Activation,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (values.shape[0], weight.shape[0])
    slope = values.new_empty(shape if keep else 0, dtype=torch.uint8)
    return values.new_empty(shape), torch.empty_like(scale), slope


def _backward_fake(
    values: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bound: Tensor,
    slope: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return values.new_empty((values.shape[0], weight.shape[0])), torch.empty_like(scale)


_OPERANDS = "Tensor values, Tensor scale, Tensor weight, Tensor weight_scale, Tensor bound"
operator(
    "scaled_wide_product",
    f"({_OPERANDS}, Tensor bias, str activation, bool keep) -> (Tensor, Tensor, Tensor)",
    reference=scaled_wide_product_reference,
    triton=_triton,
    fits=_fits,
    fake=_fake,
)
operator(
    "scaled_wide_product_backward",
    f"({_OPERANDS}, Tensor slope, ScalarType dtype) -> (Tensor, Tensor)",
    reference=scaled_wide_product_backward_reference,
    triton=_backward_triton,
    fits=_fits,
    fake=_backward_fake,
)
