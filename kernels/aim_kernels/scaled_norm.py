"""The norm before a product in eight bits, which writes what the product reads in one pass: scaled rows.

    values · scale ≈ y = norm(x) · weight + bias,  scale a row

Beside them, where it is asked for, ``y`` itself, for an adapter that reads it, and the copy of x that is kept for
backward. x [..., D], ``values`` [M, D] e4m3, ``scale`` [M, 1], of M rows. The mathematics are those of
:mod:`aim_kernels.layer_norm` and :mod:`aim_kernels.scaled_rows`; y is not rounded in between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_kernels import layer_norm_triton
from aim_kernels.layer_norm import layer_norm_reference
from aim_kernels.registration import operator, ops
from aim_kernels.rows_triton import MAX_WIDTH
from aim_kernels.scaled_rows import EIGHT_BITS, scaled_rows_reference
from aim_kernels.weights import NormWeights, ScaledRows


def scaled_norm(
    x: Tensor, norm: NormWeights, eps: float, dtype: torch.dtype, plain: bool, kept: bool = False
) -> tuple[ScaledRows, Tensor | None, Tensor, Tensor, Tensor]:
    """The scaled rows, ``y`` in ``dtype`` where ``plain`` asks for it, ``mean``, ``rstd``, and x for backward.

    That is a copy in ``dtype`` where ``kept`` asks for one and it is the narrower, else x as it is.
    """
    kept = kept and dtype.itemsize < x.dtype.itemsize
    values, scale, y, mean, rstd, copy = ops.scaled_norm(x, *norm, eps, EIGHT_BITS, dtype, plain, kept)
    return ScaledRows(values, scale), y if plain else None, mean, rstd, copy if kept else x


def scaled_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    eight_bits: torch.dtype,
    dtype: torch.dtype,
    plain: bool,
    kept: bool,
) -> tuple[Tensor, ...]:
    """``values``, ``scale``, ``y``, ``mean``, ``rstd`` and the copy of x in plain torch, [0] where not asked for."""
    y, mean, rstd = layer_norm_reference(x, weight, bias, eps, torch.promote_types(x.dtype, torch.float32))
    none = x.new_empty(0, dtype=dtype)
    rows = scaled_rows_reference(y.flatten(0, -2), eight_bits)
    return *rows, y.to(dtype) if plain else none, mean, rstd, x.to(dtype, copy=True) if kept else none.clone()


def _triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    eight_bits: torch.dtype,
    dtype: torch.dtype,
    plain: bool,
    kept: bool,
) -> tuple[Tensor, ...]:
    values, scale, y, mean, rstd, copy = found = _fake(x, weight, bias, eps, eight_bits, dtype, plain, kept)
    written = (y if plain else None, copy if kept else None, (values, scale))
    layer_norm_triton.forward(x, weight, bias, eps, mean, rstd, *written)
    return found


def _fits(x: Tensor, *_: Any) -> bool:
    return x.shape[-1] <= MAX_WIDTH


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    eight_bits: torch.dtype,
    dtype: torch.dtype,
    plain: bool,
    kept: bool,
) -> tuple[Tensor, ...]:
    wide, shape = torch.promote_types(x.dtype, torch.float32), x.shape
    rows, width = x.numel() // shape[-1], shape[-1]
    return (
        x.new_empty((rows, width), dtype=eight_bits),
        x.new_empty((rows, 1), dtype=wide),
        x.new_empty(shape if plain else 0, dtype=dtype),
        x.new_empty(0 if bias is None else shape[:-1], dtype=wide),
        x.new_empty(shape[:-1], dtype=wide),
        x.new_empty(shape if kept else 0, dtype=dtype),
    )


operator(
    "scaled_norm",
    "(Tensor x, Tensor weight, Tensor? bias, float eps, ScalarType eight_bits, ScalarType dtype, bool plain, bool kept)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=scaled_norm_reference,
    triton=_triton,
    fits=_fits,
    fake=_fake,
)
