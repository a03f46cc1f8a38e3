"""Products on a GPU that finish what they sum: the widened MLP's activation and its slope within them.

    forward    hidden = act(y Wᵀ + b), and of the frozen columns the slope's code        (:mod:`aim_kernels.wide_slope`)
    backward   du = (dout V) ∘ slope

Shapes as in :mod:`aim_kernels.wide_product`. A program goes through tiles of the result, as many programs as the card
holds at a time; what it reads for the next tile is on its way while it finishes one. Tiles go down some rows before the
next columns, so that what is read lies in the level-2 cache. Sums and activations are float32; u is not rounded before
its activation. From sm_90 up the hardware copies whole tiles where their rows lie 16 bytes apart (tensor descriptors).

In eight bits both operands are contiguous along what is summed over, and the result is written in eight bits too, its
rows in the scale of their bound (:mod:`aim_kernels.scaled_product`). On sm_90 the matrix units keep some 14 bits of
such sums, a thousandth where e4m3 loses a thirtieth.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

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
from aim_kernels.block_shapes import BlockShape, dot_precision
from aim_kernels.choices import Activation
from aim_kernels.optional_triton import cdiv, tl, triton
from aim_kernels.registration import architecture, multiprocessors
from aim_kernels.scaled_rows import bounded_scale

DEPTH = 64  # of what is summed over, at a time; twice as much in eight bits
GROUP = 8  # tiles of rows that share a tile's columns of the weight while that is in the cache
PART = 32  # columns of a tile that are finished at a time: what that takes must fit the registers beside the sums
RESIDENT = 2 * 128 * 128  # sums of a multiprocessor: half its registers; one program finishes while another multiplies


class Scales(NamedTuple):
    """Of products in eight bits (:mod:`aim_kernels.scaled_product`), float32 and contiguous."""

    x_scale: Tensor  # [rows, 1]
    weight_scale: Tensor  # [width, 1]
    bound: Tensor  # [2]
    out_scale: Tensor  # [rows, 1], which is written


@triton.jit
def _place(
    i_tile: tl.tensor, M: tl.tensor, W: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The first row and column of a tile."""
    n_row = tl.cdiv(M, ROWS)
    group = GROUP * tl.cdiv(W, COLUMNS)
    i_first = i_tile // group * GROUP
    high = min(n_row - i_first, GROUP)
    return (i_first + i_tile % group % high) * ROWS, i_tile % group // high * COLUMNS


@triton.jit
def _matrix(
    x_ptr: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    DESCRIBED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tl.tensor:
    """What tiles of a matrix, its rows ``stride`` apart, are read or written through: its descriptor or its pointer."""
    if DESCRIBED:
        return tl.make_tensor_descriptor(x_ptr, [rows, columns], [stride, 1], [ROWS, COLUMNS])
    else:
        return x_ptr


@triton.jit
def _tile(
    i_row: tl.tensor,
    i_column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """A tile's offsets, from a 64-bit one of its first element, and its mask."""
    o_row, o_column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    m_tile = (i_row + o_row < rows)[:, None] & (i_column + o_column < columns)[None, :]
    i_first = tl.cast(i_row, tl.int64) * stride + i_column
    return i_first, o_row[:, None] * stride + o_column[None, :], m_tile


@triton.jit
def _read(
    matrix: tl.tensor,
    i_row: tl.tensor,
    i_column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    DESCRIBED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tl.tensor:
    if DESCRIBED:
        return matrix.load([i_row, i_column])
    else:
        i_first, o_tile, m_tile = _tile(i_row, i_column, rows, columns, stride, ROWS, COLUMNS)
        b_zero = tl.zeros([ROWS, COLUMNS], matrix.dtype.element_ty)
        return tl.load(matrix + i_first + o_tile, mask=m_tile, other=b_zero)


@triton.jit
def _write(
    matrix: tl.tensor,
    b_x: tl.tensor,
    i_row: tl.tensor,
    i_column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    DESCRIBED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    if DESCRIBED:
        matrix.store([i_row, i_column], b_x)
    else:
        i_first, o_tile, m_tile = _tile(i_row, i_column, rows, columns, stride, ROWS, COLUMNS)
        tl.store(matrix + i_first + o_tile, b_x, mask=m_tile)


@triton.jit
def _halves(b_x: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The left and the right half of a tile."""
    return tl.split(tl.permute(tl.reshape(b_x, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))


@triton.jit
def _times_factor(
    b_x: tl.tensor, factor_ptr: tl.tensor, i_row: tl.tensor, M: tl.tensor, FACTOR: tl.constexpr, ROWS: tl.constexpr
) -> tl.tensor:
    if FACTOR:
        o_row = i_row + tl.arange(0, ROWS)
        return b_x * tl.load(factor_ptr + o_row, mask=o_row < M, other=0.0)[:, None]
    else:
        return b_x


@triton.jit
def _restored(
    b_sum: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_scale_ptr: tl.tensor,
    bound_ptr: tl.tensor,
    out_scale_ptr: tl.tensor,
    i_row: tl.tensor,
    i_column: tl.tensor,
    M: tl.tensor,
    W: tl.tensor,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """A tile of sums of eight-bit products in their scales, and by what its rows are multiplied before they are written
    in those of their bound, which the tiles of the first column write."""
    o_row, o_column = i_row + tl.arange(0, ROWS), i_column + tl.arange(0, COLUMNS)
    b_times = tl.full([ROWS], 1.0, tl.float32)
    if SCALED:
        b_scale, b_out = bounded_scale(x_scale_ptr, bound_ptr, o_row, o_row < M)
        if i_column == 0:
            tl.store(out_scale_ptr + o_row, b_out, mask=o_row < M)
        b_weight = tl.load(weight_scale_ptr + o_column, mask=o_column < W, other=0.0)
        b_sum, b_times = b_sum * (b_scale[:, None] * b_weight[None, :]), 1.0 / b_out
    return b_sum, b_times


@triton.jit
def _activate(
    b_u: tl.tensor,
    b_times: tl.tensor,
    bias_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    out_ptr: tl.tensor,
    out: tl.tensor,
    slope: tl.tensor,
    i_row: tl.tensor,
    i_column: tl.tensor,
    M: tl.tensor,
    W: tl.tensor,
    split: tl.tensor,
    ACTIVATION: tl.constexpr,
    FACTOR: tl.constexpr,
    KEPT: tl.constexpr,
    SCALED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """Writes what follows from a tile of products, PART columns at a time."""
    if COLUMNS > PART:
        b_left, b_right = _halves(b_u, ROWS, COLUMNS)
        _activate(b_left, b_times, bias_ptr, factor_ptr, out_ptr, out, slope, i_row, i_column, M, W, split, ACTIVATION,
                  FACTOR, KEPT, SCALED, DESCRIBED, ROWS, COLUMNS // 2, PART)  # fmt: skip
        _activate(b_right, b_times, bias_ptr, factor_ptr, out_ptr, out, slope, i_row, i_column + COLUMNS // 2, M, W,
                  split, ACTIVATION, FACTOR, KEPT, SCALED, DESCRIBED, ROWS, COLUMNS // 2, PART)  # fmt: skip
    else:
        o_column = i_column + tl.arange(0, COLUMNS)
        b_u += tl.load(bias_ptr + o_column, mask=o_column < W, other=0.0).to(tl.float32)[None, :]
        if KEPT and i_column < split:
            b_code = slope_code(activation_slope(b_u, ACTIVATION))
            _write(slope, b_code, i_row, i_column, M, split, split, DESCRIBED, ROWS, COLUMNS)
        if i_column + COLUMNS <= split:
            b_y = activation_value(b_u, ACTIVATION)
        else:
            b_own = _times_factor(gelu_value(b_u), factor_ptr, i_row, M, FACTOR, ROWS)
            b_y = tl.where((o_column < split)[None, :], activation_value(b_u, ACTIVATION), b_own)
        if SCALED:
            b_y *= b_times[:, None]
        _write(out, b_y.to(out_ptr.dtype.element_ty), i_row, i_column, M, W, W, DESCRIBED, ROWS, COLUMNS)


@triton.jit
def _multiply(
    b_dhidden: tl.tensor,
    own_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    out_ptr: tl.tensor,
    out: tl.tensor,
    slope: tl.tensor,
    i_row: tl.tensor,
    i_column: tl.tensor,
    M: tl.tensor,
    W: tl.tensor,
    split: tl.tensor,
    FACTOR: tl.constexpr,
    DESCRIBED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """The same of the backward."""
    if COLUMNS > PART:
        b_left, b_right = _halves(b_dhidden, ROWS, COLUMNS)
        _multiply(b_left, own_ptr, factor_ptr, out_ptr, out, slope, i_row, i_column, M, W, split, FACTOR, DESCRIBED,
                  ROWS, COLUMNS // 2, PART)  # fmt: skip
        _multiply(b_right, own_ptr, factor_ptr, out_ptr, out, slope, i_row, i_column + COLUMNS // 2, M, W, split,
                  FACTOR, DESCRIBED, ROWS, COLUMNS // 2, PART)  # fmt: skip
    else:
        b_slope = slope_of(_read(slope, i_row, i_column, M, split, split, DESCRIBED, ROWS, COLUMNS))
        if i_column + COLUMNS > split:
            o_row, o_column = i_row + tl.arange(0, ROWS), i_column + tl.arange(0, COLUMNS)
            m_own = (o_row < M)[:, None] & ((o_column >= split) & (o_column < W))[None, :]
            o_own = o_row.to(tl.int64)[:, None] * (W - split) + (o_column - split)[None, :]
            b_own = gelu_slope(tl.load(own_ptr + o_own, mask=m_own, other=0.0).to(tl.float32))
            b_own = _times_factor(b_own, factor_ptr, i_row, M, FACTOR, ROWS)
            b_slope = tl.where((o_column < split)[None, :], b_slope, b_own)
        b_du = (b_dhidden * b_slope).to(out_ptr.dtype.element_ty)
        _write(out, b_du, i_row, i_column, M, W, W, DESCRIBED, ROWS, COLUMNS)


@triton.jit
def wide_product_forward_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_scale_ptr: tl.tensor,
    bound_ptr: tl.tensor,
    out_ptr: tl.tensor,
    slope_ptr: tl.tensor,
    out_scale_ptr: tl.tensor,
    M: tl.tensor,
    W: tl.tensor,
    split: tl.tensor,
    stride: tl.tensor,
    D: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FACTOR: tl.constexpr,
    KEPT: tl.constexpr,
    SCALED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    x = _matrix(x_ptr, M, D, D, DESCRIBED, ROWS, DEPTH)
    weight = _matrix(weight_ptr, W, D, stride, DESCRIBED, COLUMNS, DEPTH)
    out = _matrix(out_ptr, M, W, W, DESCRIBED, ROWS, PART)
    slope = _matrix(slope_ptr, M, split, split, DESCRIBED and KEPT, ROWS, PART)
    tiles = tl.cdiv(M, ROWS) * tl.cdiv(W, COLUMNS)
    for i_tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        i_row, i_column = _place(i_tile, M, W, ROWS, COLUMNS, GROUP)
        b_u = tl.zeros([ROWS, COLUMNS], tl.float32)
        for i_depth in range(0, D, DEPTH):
            b_x = _read(x, i_row, i_depth, M, D, D, DESCRIBED, ROWS, DEPTH)
            b_weight = _read(weight, i_column, i_depth, W, D, stride, DESCRIBED, COLUMNS, DEPTH)
            b_u = tl.dot(b_x, b_weight.T, b_u, input_precision=PRECISION)
        b_u, b_times = _restored(b_u, x_scale_ptr, weight_scale_ptr, bound_ptr, out_scale_ptr, i_row, i_column, M, W,
                                 SCALED, ROWS, COLUMNS)  # fmt: skip
        _activate(b_u, b_times, bias_ptr, factor_ptr, out_ptr, out, slope, i_row, i_column, M, W, split, ACTIVATION,
                  FACTOR, KEPT, SCALED, DESCRIBED, ROWS, COLUMNS, PART)  # fmt: skip


@triton.jit
def wide_product_backward_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    slope_ptr: tl.tensor,
    own_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_scale_ptr: tl.tensor,
    bound_ptr: tl.tensor,
    out_ptr: tl.tensor,
    out_scale_ptr: tl.tensor,
    M: tl.tensor,
    W: tl.tensor,
    split: tl.tensor,
    stride: tl.tensor,
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    SCALED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    x = _matrix(x_ptr, M, D, D, DESCRIBED, ROWS, DEPTH)
    if SCALED:  # the transpose, contiguous along what is summed over
        weight = _matrix(weight_ptr, W, D, stride, DESCRIBED, COLUMNS, DEPTH)
    else:
        weight = _matrix(weight_ptr, D, W, stride, DESCRIBED, DEPTH, COLUMNS)
    out = _matrix(out_ptr, M, W, W, DESCRIBED, ROWS, PART)
    slope = _matrix(slope_ptr, M, split, split, DESCRIBED, ROWS, PART)
    tiles = tl.cdiv(M, ROWS) * tl.cdiv(W, COLUMNS)
    for i_tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        i_row, i_column = _place(i_tile, M, W, ROWS, COLUMNS, GROUP)
        b_dhidden = tl.zeros([ROWS, COLUMNS], tl.float32)
        for i_depth in range(0, D, DEPTH):
            b_x = _read(x, i_row, i_depth, M, D, D, DESCRIBED, ROWS, DEPTH)
            if SCALED:
                b_weight = _read(weight, i_column, i_depth, W, D, stride, DESCRIBED, COLUMNS, DEPTH).T
            else:
                b_weight = _read(weight, i_depth, i_column, D, W, stride, DESCRIBED, DEPTH, COLUMNS)
            b_dhidden = tl.dot(b_x, b_weight, b_dhidden, input_precision=PRECISION)
        b_dhidden, b_times = _restored(b_dhidden, x_scale_ptr, weight_scale_ptr, bound_ptr, out_scale_ptr, i_row,
                                       i_column, M, W, SCALED, ROWS, COLUMNS)  # fmt: skip
        if SCALED:
            b_dhidden *= b_times[:, None]
        _multiply(b_dhidden, own_ptr, factor_ptr, out_ptr, out, slope, i_row, i_column, M, W, split, FACTOR,
                  DESCRIBED, ROWS, COLUMNS, PART)  # fmt: skip


def fits(x: Tensor, width: int, split: int) -> bool:
    """Whether these kernels serve products of ``x`` [M, D]: of 8 or 16 bits, of rows that lie 16 bytes apart."""
    return x.dtype.itemsize <= 2 and not (x.shape[1] * x.dtype.itemsize % 16 or width % 8 or split % 16)


def described(matrices: Iterable[Tensor], target: int) -> bool:
    """Whether the hardware of ``target`` copies tiles of matrices, whose rows are contiguous."""
    starts = ((x.storage_offset() * x.itemsize, x.stride(0) * x.itemsize) for x in matrices)
    return target >= 90 and all(apart and not (first % 16 or apart % 16) for first, apart in starts)


def launch_shape(shape: BlockShape, described: bool, itemsize: int = 2) -> tuple[dict[str, Any], dict[str, int]]:
    """Constants and launch options."""
    constants = {"DESCRIBED": described, "ROWS": shape.rows, "COLUMNS": shape.columns}
    constants |= {"DEPTH": DEPTH * (2 if itemsize == 1 else 1), "GROUP": GROUP, "PART": min(PART, shape.columns)}
    return constants, {"num_warps": shape.warps, "num_stages": shape.stages}


def forward(
    y: Tensor,
    widening: Tensor,
    bias: Tensor,
    split: int,
    activation: Activation,
    factor: Tensor | None,
    keep: bool,
    shape: BlockShape,
    scales: Scales | None = None,
) -> tuple[Tensor, Tensor]:
    """``hidden`` [rows, M + H] and ``slope`` [rows, M], [0] unless ``keep``; in eight bits with ``scales``."""
    y, rows, width = y.contiguous(), y.shape[0], widening.shape[0]
    hidden, slope = y.new_empty((rows, width)), y.new_empty((rows, split) if keep else 0, dtype=torch.uint8)
    given = {"bias_ptr": bias.contiguous(), "ACTIVATION": activation, "KEPT": keep}
    _launch(wide_product_forward_kernel, y, widening, factor, hidden, slope, split, shape, scales, given)
    return hidden, slope


def backward(
    dout: Tensor,
    narrowing: Tensor,
    slope: Tensor,
    own: Tensor,
    factor: Tensor | None,
    shape: BlockShape,
    scales: Scales | None = None,
) -> Tensor:
    """``du`` [rows, M + H]; in eight bits with ``scales``, ``narrowing`` then transposed, [M, D]."""
    width = narrowing.shape[1 if scales is None else 0]
    dout, du = dout.contiguous(), dout.new_empty((dout.shape[0], width))
    slope, given = slope.contiguous(), {"own_ptr": own.contiguous()}
    _launch(wide_product_backward_kernel, dout, narrowing, factor, du, slope, slope.shape[1], shape, scales, given)
    return du


@functools.cache
def _room(device: torch.device) -> Any:
    return lambda size, alignment, stream: torch.empty(size, dtype=torch.uint8, device=device)


def _launch(
    kernel: Any,
    x: Tensor,
    weight: Tensor,
    factor: Tensor | None,
    out: Tensor,
    slope: Tensor,
    split: int,
    shape: BlockShape,
    scales: Scales | None,
    given: dict[str, Any],
) -> None:
    (rows, width), weight = out.shape, weight if weight.stride(1) == 1 else weight.contiguous()
    matrices = [matrix for matrix in (x, weight, out, slope) if matrix.ndim == 2]
    constants, options = launch_shape(shape, described(matrices, architecture(x)), x.dtype.itemsize)
    if constants["DESCRIBED"]:
        triton.set_allocator(_room(x.device))  # where the programs put them; asked of the thread that launches
    tiles = cdiv(rows, shape.rows) * cdiv(width, shape.columns)
    resident = multiprocessors(x) * max(1, RESIDENT // (shape.rows * shape.columns))
    kernel[(min(tiles, resident),)](
        x_ptr=x,
        weight_ptr=weight,
        factor_ptr=x if factor is None else factor.float().contiguous(),
        out_ptr=out,
        slope_ptr=slope,
        M=rows,
        W=width,
        split=split,
        stride=weight.stride(0),
        D=x.shape[1],
        FACTOR=factor is not None,
        SCALED=scales is not None,
        PRECISION=dot_precision(x),
        **{f"{name}_ptr": part for name, part in zip(Scales._fields, scales or (x,) * len(Scales._fields))},
        **given,
        **constants,
        **options,
    )
