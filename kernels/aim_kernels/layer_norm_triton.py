"""The row norm's Triton kernels: forward, which may add a branch first, and backward, which may go on to a branch.

One forward kernel serves :mod:`aim_kernels.layer_norm`, :mod:`aim_kernels.scaled_norm` and
:mod:`aim_kernels.residual_norm`, where the mathematics are; what a call does not ask for is compiled out of it. A
pointer that is not asked for is never read: callers pass any tensor there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aim_kernels.optional_triton import cdiv, tl, triton
from aim_kernels.packed import load_stream, store_low
from aim_kernels.registration import architecture
from aim_kernels.rows_triton import launch, launch_shape, norm_gradient, normal_gradient, normalise, row_tile, rows_at
from aim_kernels.scaled_rows import store_scaled_rows

PART = 32  # rows whose gradients a program adds before it writes their sum


@triton.jit
def layer_norm_forward_kernel(
    x_ptr: tl.tensor,
    x_low_ptr: tl.tensor,
    x_mean_ptr: tl.tensor,
    x_rstd_ptr: tl.tensor,
    branch_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    added_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    y_ptr: tl.tensor,
    values_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    kept_ptr: tl.tensor,
    M: tl.tensor,
    eps: tl.tensor,
    D: tl.constexpr,
    RMS: tl.constexpr,
    UNPACK: tl.constexpr,
    PACK: tl.constexpr,
    BRANCH: tl.constexpr,
    FACTOR: tl.constexpr,
    ADDED: tl.constexpr,
    PLAIN: tl.constexpr,
    SCALED: tl.constexpr,
    KEPT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    o_row, o_column, m_row, m_column, m_tile, o_tile = row_tile(M, D, ROWS, COLUMNS)
    b_x = load_stream(x_ptr, x_low_ptr, o_tile, m_tile, UNPACK)  # [ROWS, COLUMNS]
    if UNPACK:
        b_deviation = 1.0 / tl.load(x_rstd_ptr + o_row, mask=m_row, other=1.0)
        b_x = b_x * b_deviation[:, None] + tl.load(x_mean_ptr + o_row, mask=m_row, other=0.0)[:, None]
        b_x = tl.where(m_tile, b_x, 0.0)
    if BRANCH:
        b_x = add_branch(
            b_x, branch_ptr, factor_ptr, added_ptr, o_row, o_column, m_row, m_column, o_tile, m_tile, FACTOR, ADDED
        )
        if not PACK:
            b_out = b_x.to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + o_tile, b_out, mask=m_tile)
            b_x = b_out.to(tl.float32)
    if KEPT:
        tl.store(kept_ptr + o_tile, b_x.to(kept_ptr.dtype.element_ty), mask=m_tile)
    b_weight = tl.load(weight_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
    if RMS:
        b_rstd = 1.0 / tl.sqrt(tl.sum(b_x * b_x, 1) / D + eps)
        b_y = b_x * b_rstd[:, None] * b_weight[None, :]
    else:
        b_bias = tl.load(bias_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
        b_y, b_mean, b_rstd = normalise(b_x, b_weight, b_bias, m_tile, eps, D)
        tl.store(mean_ptr + o_row, b_mean, mask=m_row)
    tl.store(rstd_ptr + o_row, b_rstd, mask=m_row)
    if PLAIN:
        b_high = b_y.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + o_tile, b_high, mask=m_tile)
        if PACK:
            store_low(b_y, b_high, out_ptr, o_tile, m_tile)
    if SCALED:
        store_scaled_rows(b_y, values_ptr, scale_ptr, o_row, m_row, o_tile, m_tile)


@triton.jit
def add_branch(
    b_x: tl.tensor,
    branch_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    added_ptr: tl.tensor,
    o_row: tl.tensor,
    o_column: tl.tensor,
    m_row: tl.tensor,
    m_column: tl.tensor,
    o_tile: tl.tensor,
    m_tile: tl.tensor,
    FACTOR: tl.constexpr,
    ADDED: tl.constexpr,
) -> tl.tensor:
    """x + branch · factor, or with ADDED x + branch + factor · added."""
    b_add = tl.load(branch_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    if ADDED:
        b_added = tl.load(added_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)[None, :]
        if FACTOR:
            b_added = b_added * tl.load(factor_ptr + o_row, mask=m_row, other=0.0)[:, None]
        b_add += b_added
    elif FACTOR:
        b_add *= tl.load(factor_ptr + o_row, mask=m_row, other=0.0)[:, None]
    return b_x + b_add


@triton.jit
def _gradient(
    dy_ptr: tl.tensor,
    x_ptr: tl.tensor,
    b_weight: tl.tensor,
    mean_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    o_row: tl.tensor,
    m_row: tl.tensor,
    o_tile: tl.tensor,
    m_tile: tl.tensor,
    D: tl.constexpr,
    RMS: tl.constexpr,
    NORMAL: tl.constexpr,
) -> tl.tensor:
    """dx of a tile of rows, without what flows around the norm; of NORMAL rows, which are x̂ themselves."""
    b_x = tl.load(x_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    b_dy = tl.load(dy_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    b_rstd = tl.load(rstd_ptr + o_row, mask=m_row, other=0.0)
    if RMS:
        b_g = b_dy * b_weight[None, :]
        b_normal = b_x * b_rstd[:, None]
        b_dx = b_rstd[:, None] * (b_g - b_normal * (tl.sum(b_g * b_normal, 1) / D)[:, None])
    elif NORMAL:
        b_dx = normal_gradient(b_dy * b_weight[None, :], b_x, b_rstd, D)
    else:
        b_mean = tl.load(mean_ptr + o_row, mask=m_row, other=0.0)
        b_dx = norm_gradient(b_dy, b_x, b_weight, b_mean, b_rstd, m_tile, D)
    return b_dx


@triton.jit
def layer_norm_backward_kernel(
    dy_ptr: tl.tensor,
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    M: tl.tensor,
    D: tl.constexpr,
    RMS: tl.constexpr,
    NORMAL: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    o_row, o_column, m_row, m_column, m_tile, o_tile = row_tile(M, D, ROWS, COLUMNS)
    b_weight = tl.load(weight_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
    b_dx = _gradient(dy_ptr, x_ptr, b_weight, mean_ptr, rstd_ptr, o_row, m_row, o_tile, m_tile, D, RMS, NORMAL)
    if RESIDUAL:
        b_dx += tl.load(residual_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    tl.store(dx_ptr + o_tile, b_dx.to(dx_ptr.dtype.element_ty), mask=m_tile)


@triton.jit
def layer_norm_branch_kernel(
    dy_ptr: tl.tensor,
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    residual_low_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    branch_ptr: tl.tensor,
    values_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    M: tl.tensor,
    D: tl.constexpr,
    RMS: tl.constexpr,
    NORMAL: tl.constexpr,
    UNPACK: tl.constexpr,
    PACK: tl.constexpr,
    FACTOR: tl.constexpr,
    DROPPED: tl.constexpr,
    SCALED: tl.constexpr,
    SUM: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """The gradients of SPAN tiles of rows and of the branch that ends in them, and the sum of the latter's rows."""
    i_chunk = tl.program_id(0).to(tl.int64)
    o_column = tl.arange(0, COLUMNS)
    m_column = o_column < D
    b_weight = tl.load(weight_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)
    b_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i_step in range(SPAN):
        o_row, m_row, m_tile, o_tile = rows_at(i_chunk * SPAN + i_step, o_column, m_column, M, D, ROWS)
        b_dx = _gradient(dy_ptr, x_ptr, b_weight, mean_ptr, rstd_ptr, o_row, m_row, o_tile, m_tile, D, RMS, NORMAL)
        b_dx += load_stream(residual_ptr, residual_low_ptr, o_tile, m_tile, UNPACK)
        b_branch = b_dx
        if not PACK:
            b_dx = b_dx.to(dx_ptr.dtype.element_ty)
            tl.store(dx_ptr + o_tile, b_dx, mask=m_tile)
            b_branch = b_dx.to(tl.float32)
        if FACTOR:
            b_factor = tl.load(factor_ptr + o_row, mask=m_row, other=0.0)[:, None]
        if FACTOR and DROPPED:
            b_branch *= b_factor
        b_low = b_branch.to(branch_ptr.dtype.element_ty)
        tl.store(branch_ptr + o_tile, b_low, mask=m_tile)
        if PACK:
            store_low(b_dx, b_low, dx_ptr, o_tile, m_tile)
        b_branch = tl.where(m_tile, b_low.to(tl.float32), 0.0)
        if SCALED:
            store_scaled_rows(b_branch, values_ptr, scale_ptr, o_row, m_row, o_tile, m_tile)
        if SUM:
            if FACTOR and not DROPPED:
                b_branch *= b_factor
            b_sum += b_branch
    if SUM:
        tl.store(partial_ptr + i_chunk * D + o_column, tl.sum(b_sum, 0), mask=m_column)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    mean: Tensor,
    rstd: Tensor,
    y: Tensor | None,
    kept: Tensor | None = None,
    scaled: tuple[Tensor, Tensor] | None = None,
    branch: Tensor | None = None,
    factor: Tensor | None = None,
    added: Tensor | None = None,
    out: Tensor | None = None,
    packed: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Writes ``mean``, ``rstd``, and what there is of ``y``, ``kept``, ``scaled`` and, with a ``branch``, ``out``, or
    where that is int8 what ``y`` lacks. ``packed`` are the other parts of an ``x`` that is :class:`~.packed.Packed`."""
    x = x.contiguous()

    def given(tensor: Tensor | None, otherwise: Tensor = x) -> Tensor:
        return otherwise if tensor is None else tensor.contiguous()

    launch(
        layer_norm_forward_kernel,
        x,
        "" if branch is None else "layer_norm_branch_forward",
        x_ptr=x,
        x_low_ptr=given(packed and packed[0]),
        x_mean_ptr=given(packed and packed[1]),
        x_rstd_ptr=given(packed and packed[2]),
        branch_ptr=given(branch),
        factor_ptr=given(None if factor is None else factor.float()),
        added_ptr=given(added),
        weight_ptr=weight.contiguous(),
        bias_ptr=given(bias, weight),
        out_ptr=given(out),
        y_ptr=given(y),
        values_ptr=given(scaled and scaled[0]),
        scale_ptr=given(scaled and scaled[1]),
        mean_ptr=mean,
        rstd_ptr=rstd,
        kept_ptr=given(kept),
        eps=eps,
        RMS=bias is None,
        UNPACK=packed is not None,
        PACK=out is not None and out.dtype == torch.int8,
        BRANCH=branch is not None,
        FACTOR=factor is not None,
        ADDED=added is not None,
        PLAIN=y is not None,
        SCALED=scaled is not None,
        KEPT=kept is not None,
    )


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor, residual: Tensor | None, dx: Tensor
) -> None:
    """Writes ``dx``."""
    launch(
        layer_norm_backward_kernel,
        x,
        dy_ptr=dy.contiguous(),
        x_ptr=x.contiguous(),
        weight_ptr=weight.contiguous(),
        mean_ptr=rstd if mean is None else mean,
        rstd_ptr=rstd,
        residual_ptr=dx if residual is None else residual.contiguous(),
        dx_ptr=dx,
        RMS=mean is not None and mean.shape != rstd.shape,
        NORMAL=mean is None,
        RESIDUAL=residual is not None,
    )


def branch_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    residual: Tensor,
    factor: Tensor | None,
    dropped: bool,
    summed: bool,
    dx: Tensor,
    branch: Tensor,
    scaled: tuple[Tensor, Tensor] | None = None,
    residual_low: Tensor | None = None,
) -> Tensor:
    """Writes ``dx``, or where that is int8 what ``branch`` lacks of it, ``branch`` [M, D] and what there is of its rows
    in eight bits, ``scaled``; returns the column sums of each :data:`PART` rows of the branch, where they are
    ``summed``, in float32, else [0]. ``residual_low`` is there where ``residual`` is packed."""
    rows, width = x.shape
    constants, options = launch_shape(width, architecture(x), "layer_norm_branch", x.dtype.itemsize)
    chunks = cdiv(rows, PART)
    partial = x.new_empty((chunks, width) if summed else (0,), dtype=torch.float32)
    layer_norm_branch_kernel[(chunks,)](
        dy_ptr=dy.contiguous(),
        x_ptr=x.contiguous(),
        weight_ptr=weight.contiguous(),
        mean_ptr=rstd if mean is None else mean,
        rstd_ptr=rstd,
        residual_ptr=residual.contiguous(),
        residual_low_ptr=rstd if residual_low is None else residual_low.contiguous(),
        factor_ptr=rstd if factor is None else factor.float().contiguous(),
        dx_ptr=dx,
        branch_ptr=branch,
        values_ptr=branch if scaled is None else scaled[0],
        scale_ptr=rstd if scaled is None else scaled[1],
        partial_ptr=partial if summed else rstd,
        M=rows,
        D=width,
        RMS=mean is not None and mean.shape != rstd.shape,
        NORMAL=mean is None,
        UNPACK=residual_low is not None,
        PACK=dx.dtype == torch.int8,
        FACTOR=factor is not None,
        DROPPED=dropped,
        SCALED=scaled is not None,
        SUM=summed,
        SPAN=PART // constants["ROWS"],
        **constants,
        **options,
    )
    return partial
