"""The gradients of an adapter's two biases in one launch, with the pass back through its activation where there is one.

    column_sums:     Σ_m x[m, h]   and   Σ_n rows[n, d]                     x [M, H], its rows apart by any stride
    gelu_gradients:  du = f · dy ∘ gelu'(u),   hidden = f · gelu(u),   and the sums of du and of rows       dy, u [M, H]

``f`` [M] is droppath's factor of an adapter that is dropped alone, None for 1.
``rows`` [N, D] are the gradients of the adapter's output, or sums of them that were made on the way; None, where its
second bias wants no gradient. Sums are in float32 at least, [parts, H] and [parts, D]: of all rows, or of several parts
of them one behind the other, where what is left to add is added for the adapters of many blocks in one launch
(:mod:`aim_kernels.stacked_adapters`). No atomics: the same bits at every run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import column_sum, wide_activation  # noqa: F401  (registers the operators)
from aim_kernels.activations_triton import gelu_slope, gelu_value
from aim_kernels.block_shapes import block_shape
from aim_kernels.optional_triton import cdiv, tl, triton
from aim_kernels.precision import in_dtype
from aim_kernels.registration import OPERATORS, alike, architecture, operator, ops
from aim_kernels.weights import AdapterWeights, FormedAdapter

MOST, _ROWS = 256, 64  # parts, of which there are then programs for every card; rows of a part at least


class Biases(NamedTuple):
    """The gradients of an adapter's biases in their shapes and dtypes, None where one is not known."""

    b1: Tensor | None = None  # [H], or [parts, H] of one that is formed with others
    b2: Tensor | None = None  # [D], [parts, D]


def bias_gradients(weights: AdapterWeights | FormedAdapter, du: Tensor | None, rows: Tensor | None) -> Biases:
    """From ``du`` [M, H], the gradient before the activation, and ``rows``; either may not be wanted."""
    first = rows if du is None else du
    if first is None:
        return Biases()
    sums = ops.column_sums(first, None if du is None else rows, _parts(weights))
    return _of(weights, sums[1], sums[0]) if du is None else _of(weights, *sums)


def gelu_gradients(
    weights: AdapterWeights | FormedAdapter, dy: Tensor, u: Tensor, rows: Tensor | None, factor: Tensor | None = None
) -> tuple[Tensor, Tensor, Biases]:
    """``du``, ``hidden`` and :func:`bias_gradients` from ``dy`` [M, H], the gradient after the activation of ``u``."""
    du, hidden, *sums = ops.gelu_gradients(dy, u, rows, _parts(weights), factor)
    return du, hidden, _of(weights, *sums)


def parts_of(rows: int) -> int:
    """In how many parts a GPU adds up so many rows."""
    return min(MOST, 1 << (-(-rows // _ROWS) - 1).bit_length())


def _parts(weights: AdapterWeights | FormedAdapter) -> int:
    return weights.b1.shape[0] if weights.b1.ndim == 2 else 1


def _of(weights: AdapterWeights | FormedAdapter, b1: Tensor, b2: Tensor) -> Biases:
    return Biases(_like(weights.b1, b1), _like(weights.b2, b2))


def _like(bias: Tensor, sums: Tensor) -> Tensor | None:
    if not sums.numel():
        return None
    return in_dtype(sums if bias.ndim == 2 else sums.view_as(bias), bias.dtype)


def column_sums_reference(x: Tensor, rows: Tensor | None, parts: int) -> tuple[Tensor, Tensor]:
    """The formulas above in plain torch."""
    return _summed(x, parts), _none(x) if rows is None else _summed(rows, parts)


def gelu_gradients_reference(
    dy: Tensor, u: Tensor, rows: Tensor | None, parts: int, factor: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The formulas above by the operators for each."""
    du = OPERATORS["wide_activation_backward"](dy, u, 0, "gelu", factor)
    hidden = OPERATORS["wide_activation"](u, 0, "gelu", factor)
    return du, hidden, *OPERATORS["column_sums"](du, rows, parts)


def _summed(x: Tensor, parts: int) -> Tensor:
    precise = torch.promote_types(x.dtype, torch.float32)
    if parts == 1:
        return x.sum(0, keepdim=True, dtype=precise)
    size = _rows_of_a_part(x, parts)
    return F.pad(x, (0, 0, 0, size * parts - len(x))).view(parts, size, -1).sum(1, dtype=precise)


def _rows_of_a_part(x: Tensor, parts: int) -> int:
    """By powers of two, as the kernels are compiled for each."""
    return _ROWS << (-(-len(x) // (parts * _ROWS)) - 1).bit_length()


def _none(x: Tensor) -> Tensor:
    return x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))


@triton.jit
def _sum_part(
    x_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    i_part: tl.tensor,
    o_column: tl.tensor,
    M: tl.tensor,
    H: tl.tensor,
    stride: tl.tensor,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    m_column = o_column < H
    b_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i_row in range(0, SIZE, ROWS):
        o_within = i_row + tl.arange(0, ROWS)
        o_row = i_part * SIZE + o_within
        m_tile = ((o_within < SIZE) & (o_row < M))[:, None] & m_column[None, :]
        b_sum += tl.load(x_ptr + o_row[:, None] * stride + o_column[None, :], mask=m_tile, other=0.0).to(tl.float32)
    tl.store(sum_ptr + i_part * H + o_column, tl.sum(b_sum, 0), mask=m_column)


@triton.jit
def column_sums_kernel(
    x_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    rows_sum_ptr: tl.tensor,
    M: tl.tensor,
    H: tl.tensor,
    stride: tl.tensor,
    N: tl.tensor,
    D: tl.tensor,
    rows_stride: tl.tensor,
    blocks: tl.tensor,
    SIZE: tl.constexpr,
    ROWS_SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    i_block = tl.program_id(0) // PARTS
    i_part = (tl.program_id(0) % PARTS).to(tl.int64)
    if i_block < blocks:
        o_column = i_block * COLUMNS + tl.arange(0, COLUMNS)
        _sum_part(x_ptr, sum_ptr, i_part, o_column, M, H, stride, SIZE, ROWS, COLUMNS)
    else:
        o_column = (i_block - blocks) * COLUMNS + tl.arange(0, COLUMNS)
        _sum_part(rows_ptr, rows_sum_ptr, i_part, o_column, N, D, rows_stride, ROWS_SIZE, ROWS, COLUMNS)


@triton.jit
def gelu_gradients_kernel(
    dy_ptr: tl.tensor,
    u_ptr: tl.tensor,
    du_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    rows_sum_ptr: tl.tensor,
    M: tl.tensor,
    H: tl.tensor,
    N: tl.tensor,
    D: tl.tensor,
    rows_stride: tl.tensor,
    blocks: tl.tensor,
    FACTOR: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS_SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    i_block = tl.program_id(0) // PARTS
    i_part = (tl.program_id(0) % PARTS).to(tl.int64)
    if i_block < blocks:
        o_column = i_block * COLUMNS + tl.arange(0, COLUMNS)
        m_column = o_column < H
        b_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
        for i_row in range(0, SIZE, ROWS):
            o_within = i_row + tl.arange(0, ROWS)
            o_row = i_part * SIZE + o_within
            m_row = (o_within < SIZE) & (o_row < M)
            m_tile = m_row[:, None] & m_column[None, :]
            o_tile = o_row[:, None] * H + o_column[None, :]
            b_u = tl.load(u_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
            b_dy = tl.load(dy_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
            b_slope = gelu_slope(b_u)
            b_hidden = gelu_value(b_u)
            if FACTOR:
                b_factor = tl.load(factor_ptr + o_row, mask=m_row, other=0.0)[:, None]
                b_slope *= b_factor
                b_hidden *= b_factor
            b_du = (b_dy * b_slope).to(du_ptr.dtype.element_ty)
            tl.store(du_ptr + o_tile, b_du, mask=m_tile)
            tl.store(hidden_ptr + o_tile, b_hidden.to(hidden_ptr.dtype.element_ty), mask=m_tile)
            b_sum += b_du.to(tl.float32)
        tl.store(sum_ptr + i_part * H + o_column, tl.sum(b_sum, 0), mask=m_column)
    else:
        o_column = (i_block - blocks) * COLUMNS + tl.arange(0, COLUMNS)
        _sum_part(rows_ptr, rows_sum_ptr, i_part, o_column, N, D, rows_stride, ROWS_SIZE, ROWS, COLUMNS)


def launch_shape(kernel: str, width: int, target: int, itemsize: int = 2) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and launch options at H = ``width``."""
    shape = block_shape(kernel, width, target, itemsize, entry="column_sum")
    return {"ROWS": shape.rows, "COLUMNS": shape.columns}, {"num_warps": shape.warps, "num_stages": shape.stages}


def _launch(name: str, x: Tensor, rows: Tensor | None, parts: int, **operands: Tensor | int) -> tuple[Tensor, Tensor]:
    """Runs a kernel over ``x`` [M, H]: the two sums."""
    made = parts if parts > 1 else parts_of(max(len(x), 0 if rows is None else len(rows)))
    constants, options = launch_shape(name, x.shape[1], architecture(x), x.dtype.itemsize)
    columns = constants["COLUMNS"]
    sums = x.new_empty((made, x.shape[1]), dtype=torch.float32)
    if rows is None:
        other, rows_sums, more = x, sums.new_empty(0), 0
    else:
        other = rows if rows.stride(1) == 1 else rows.contiguous()
        rows_sums, more = sums.new_empty((made, rows.shape[1])), cdiv(rows.shape[1], columns)
    blocks = cdiv(x.shape[1], columns)
    kernel = column_sums_kernel if name == "column_sums" else gelu_gradients_kernel
    kernel[((blocks + more) * made,)](
        **operands,
        sum_ptr=sums,
        rows_ptr=other,
        rows_sum_ptr=rows_sums if more else sums,
        M=x.shape[0],
        H=x.shape[1],
        SIZE=_rows_of_a_part(x, made),
        N=other.shape[0],
        D=other.shape[1],
        rows_stride=other.stride(0),
        ROWS_SIZE=_rows_of_a_part(other, made),
        blocks=blocks,
        PARTS=made,
        **constants,
        **options,
    )
    if parts == made:
        return sums, rows_sums
    return sums.sum(0, keepdim=True), rows_sums.sum(0, keepdim=True) if more else rows_sums


def _sums_triton(x: Tensor, rows: Tensor | None, parts: int) -> tuple[Tensor, Tensor]:
    x = x if x.stride(1) == 1 else x.contiguous()
    return _launch("column_sums", x, rows, parts, x_ptr=x, stride=x.stride(0))


def _sums_cpp(x: Tensor, rows: Tensor | None, parts: int) -> tuple[Tensor, Tensor]:
    if parts > 1:
        return column_sums_reference(x, rows, parts)
    return OPERATORS["column_sum"](x)[None], _none(x) if rows is None else OPERATORS["column_sum"](rows)[None]


def _sums_fake(x: Tensor, rows: Tensor | None, parts: int) -> tuple[Tensor, Tensor]:
    other = _none(x) if rows is None else _none(rows).new_empty((parts, rows.shape[1]))
    return _none(x).new_empty((parts, x.shape[1])), other


def _gelu_fake(
    dy: Tensor, u: Tensor, rows: Tensor | None, parts: int, factor: Tensor | None = None
) -> tuple[Tensor, ...]:
    return alike(u), alike(u), *_sums_fake(u, rows, parts)


def _gelu_triton(
    dy: Tensor, u: Tensor, rows: Tensor | None, parts: int, factor: Tensor | None = None
) -> tuple[Tensor, ...]:
    dy, u = dy.contiguous(), u.contiguous()
    du, hidden = alike(u), alike(u)
    operands: dict[str, Tensor | int] = {"dy_ptr": dy, "u_ptr": u, "du_ptr": du, "hidden_ptr": hidden}
    operands |= {"factor_ptr": u if factor is None else factor.contiguous(), "FACTOR": factor is not None}
    return du, hidden, *_launch("gelu_gradients", u, rows, parts, **operands)


operator(
    "column_sums",
    "(Tensor x, Tensor? rows, int parts) -> (Tensor, Tensor)",
    reference=column_sums_reference,
    triton=_sums_triton,
    cpp=_sums_cpp,
    fake=_sums_fake,
)
operator(
    "gelu_gradients",
    "(Tensor dy, Tensor u, Tensor? rows, int parts, Tensor? factor=None) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=gelu_gradients_reference,
    triton=_gelu_triton,
    fake=_gelu_fake,
)
