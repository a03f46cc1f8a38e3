"""The residual add and the norm after it, and back, each in one pass: where one sub-block ends and the next begins.

    forward    out = x + branch · factor,  or  x + branch + factor · added;     y = norm(out) · weight + bias
    backward   dx = g + the norm's input gradient of dy;     db = dx · factor in the products' dtype,  Σ_m db[m]
               with ``added``, which alone is dropped:       db = dx,                        Σ_m db[m] · factor[m]
    before a product in eight bits:               values · scale ≈ db too, a scale a row

``x``, ``branch``, ``g``, ``dy`` [M, D]; ``factor`` [M]; ``added``, ``weight``, ``bias`` [D]. The mathematics of the
parts are those of :mod:`aim_kernels.residual`, :mod:`aim_kernels.layer_norm`, :mod:`aim_kernels.scaled_rows` and
:mod:`aim_kernels.column_sum`, and so are the bits on a CPU, which runs the parts. Which sub-blocks run it, say
:mod:`aim_kernels.shared_norms`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import layer_norm_triton
from aim_kernels.packed import packed_reference, unpacked_reference
from aim_kernels.registration import OPERATORS, alike, operator
from aim_kernels.rows_triton import MAX_WIDTH


def residual_norm_reference(
    x: Tensor,
    branch: Tensor,
    factor: Tensor | None,
    added: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    eight_bits: torch.dtype | None,
    plain: bool,
    kept: torch.dtype | None,
    low: Tensor | None = None,
    x_mean: Tensor | None = None,
    x_rstd: Tensor | None = None,
    packed: bool = False,
) -> tuple[Tensor, ...]:
    """``out``, ``y``, ``kept``, ``mean``, ``rstd``, ``values``, ``scale`` by the operators that it is made of.

    They are [0] where they are not asked for. ``low``, ``x_mean`` and ``x_rstd`` are the other parts of an ``x`` that
    is packed; of a ``packed`` sum ``out`` is what ``y`` lacks of x̂.
    """
    out = OPERATORS["residual_add"](unpacked_reference(x, low, x_mean, x_rstd), branch, factor, added)
    none = x.new_empty(0, dtype=kept or dtype)
    if packed:
        y, mean, rstd = OPERATORS["layer_norm"](out, weight, bias, eps, out.dtype)
        high, left = packed_reference(y, dtype)
        rows = (none.clone(), rstd.new_empty(0))
        if eight_bits is not None:
            rows = OPERATORS["scaled_rows"](y, eight_bits)
        return left, high, none, mean, rstd, *rows
    if eight_bits is not None:
        asked = (eight_bits, dtype, plain, kept is not None)
        values, scale, y, mean, rstd, copy = OPERATORS["scaled_norm"](out, weight, bias, eps, *asked)
        return out, y, copy, mean, rstd, values, scale
    if kept is not None:
        y, mean, rstd, copy = OPERATORS["layer_norm_kept"](out, weight, bias, eps, dtype, kept)
    else:
        (y, mean, rstd), copy = OPERATORS["layer_norm"](out, weight, bias, eps, dtype), none
    return out, y, copy, mean, rstd, none.clone(), rstd.new_empty(0)


def residual_norm_backward_reference(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    g: Tensor,
    factor: Tensor | None,
    dtype: torch.dtype,
    dropped: bool,
    summed: bool,
    apart: bool = False,
    eight_bits: torch.dtype | None = None,
    g_low: Tensor | None = None,
    packed: bool = False,
) -> tuple[Tensor, ...]:
    """``dx``, ``branch``, its sums, ``values`` and ``scale`` by the operators that it is made of, [0] where not asked
    for; ``apart`` the sums of each :data:`~aim_kernels.layer_norm_triton.PART` rows. ``g_low`` is the other part of a
    ``g`` that is packed; of a ``packed`` gradient ``dx`` is what ``branch`` lacks."""
    dx = OPERATORS["layer_norm_backward"](dy, x, weight, mean, rstd, unpacked_reference(g, g_low))
    branch, sums = OPERATORS["branch_gradient"](dx, factor, dtype, dropped)
    if summed and apart:
        counted = branch.to(sums.dtype) if factor is None or dropped else branch * factor[:, None]
        part = layer_norm_triton.PART
        sums = F.pad(counted, (0, 0, 0, -len(x) % part)).view(-1, part, x.shape[1]).sum(1)
    rows = (branch.new_empty(0), sums.new_empty(0))
    if eight_bits is not None:
        rows = OPERATORS["scaled_rows"](branch, eight_bits)
    dx = packed_reference(dx, dtype)[1] if packed else dx
    return dx, branch, sums if summed else sums.new_empty(0), *rows


def _triton(
    x: Tensor,
    branch: Tensor,
    factor: Tensor | None,
    added: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    eight_bits: torch.dtype | None,
    plain: bool,
    kept: torch.dtype | None,
    low: Tensor | None = None,
    x_mean: Tensor | None = None,
    x_rstd: Tensor | None = None,
    packed: bool = False,
) -> tuple[Tensor, ...]:
    asked = (dtype, eight_bits, plain, kept, low, x_mean, x_rstd, packed)
    found = _fake(x, branch, factor, added, weight, bias, eps, *asked)
    out, y, copy, mean, rstd, values, scale = found
    scaled = None if eight_bits is None else (values, scale)
    layer_norm_triton.forward(
        *(x, weight, bias, eps, mean, rstd, y if plain else None, None if kept is None else copy, scaled),
        *(branch, factor, added, out),
        None if low is None or x_mean is None or x_rstd is None else (low, x_mean, x_rstd),
    )
    return found


def _backward_triton(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    g: Tensor,
    factor: Tensor | None,
    dtype: torch.dtype,
    dropped: bool,
    summed: bool,
    apart: bool = False,
    eight_bits: torch.dtype | None = None,
    g_low: Tensor | None = None,
    packed: bool = False,
) -> tuple[Tensor, ...]:
    how = (factor, dtype, dropped, False, apart, eight_bits, g_low, packed)
    dx, branch, _, *rows = _backward_fake(dy, x, weight, mean, rstd, g, *how)
    written = (dx, branch, None if eight_bits is None else (rows[0], rows[1]), g_low)
    sums = layer_norm_triton.branch_backward(dy, x, weight, mean, rstd, g, factor, dropped, summed, *written)
    return dx, branch, sums if apart or not summed else sums.sum(0), *rows


def _fake(
    x: Tensor,
    branch: Tensor,
    factor: Tensor | None,
    added: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    eight_bits: torch.dtype | None,
    plain: bool,
    kept: torch.dtype | None,
    low: Tensor | None = None,
    x_mean: Tensor | None = None,
    x_rstd: Tensor | None = None,
    packed: bool = False,
) -> tuple[Tensor, ...]:
    wide, rows = torch.promote_types(x.dtype, torch.float32), x.shape[0]
    return (
        alike(x, _of_stream(x, low, packed)),
        alike(x, dtype) if plain else x.new_empty(0, dtype=dtype),
        x.new_empty(0, dtype=dtype) if kept is None else alike(x, kept),
        x.new_empty(0 if bias is None else rows, dtype=wide),
        x.new_empty(rows, dtype=wide),
        x.new_empty(0 if eight_bits is None else x.shape, dtype=eight_bits or kept or dtype),
        x.new_empty(0 if eight_bits is None else (rows, 1), dtype=wide),
    )


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    g: Tensor,
    factor: Tensor | None,
    dtype: torch.dtype,
    dropped: bool,
    summed: bool,
    apart: bool = False,
    eight_bits: torch.dtype | None = None,
    g_low: Tensor | None = None,
    packed: bool = False,
) -> tuple[Tensor, ...]:
    wide = torch.promote_types(dtype, torch.float32)
    dx, branch = alike(x, _of_stream(g, g_low, packed)), alike(x, dtype)
    parts = (-(-len(x) // layer_norm_triton.PART),) if apart else ()
    sums = x.new_empty((*parts, x.shape[1]) if summed else 0, dtype=wide)
    if eight_bits is None:
        return dx, branch, sums, x.new_empty(0, dtype=dtype), x.new_empty(0, dtype=wide)
    return dx, branch, sums, x.new_empty(x.shape, dtype=eight_bits), x.new_empty((len(x), 1), dtype=wide)


def _of_stream(x: Tensor, low: Tensor | None, packed: bool) -> torch.dtype:
    """What is written of a stream that comes in as ``x`` and ``low``."""
    return torch.int8 if packed else x.dtype if low is None else torch.float32


def _fits(x: Tensor, *_: Any) -> bool:
    return x.shape[1] <= MAX_WIDTH


operator(
    "residual_norm",
    "(Tensor x, Tensor branch, Tensor? factor, Tensor? added, Tensor weight, Tensor? bias, float eps, ScalarType dtype,"
    " ScalarType? eight_bits, bool plain, ScalarType? kept, Tensor? low=None, Tensor? x_mean=None, Tensor? x_rstd=None,"
    " bool packed=False)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=residual_norm_reference,
    triton=_triton,
    fits=_fits,
    fake=_fake,
)
operator(
    "residual_norm_backward",
    "(Tensor dy, Tensor x, Tensor weight, Tensor? mean, Tensor rstd, Tensor g, Tensor? factor, ScalarType dtype,"
    " bool dropped, bool summed, bool apart=False, ScalarType? eight_bits=None, Tensor? g_low=None, bool packed=False)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=residual_norm_backward_reference,
    triton=_backward_triton,
    fits=_fits,
    fake=_backward_fake,
)
