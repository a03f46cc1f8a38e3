"""The bottleneck adapter on a GPU in one launch each way: a tile of tokens, its hidden state never leaving the chip.

    forward    u = z W1ᵀ + b1;   out = residual + f·s·(skip·z + gelu(u) W2ᵀ + b2)
    backward   branch = f·s·g;   du = (branch W2)∘gelu'(u);   dz = du W1 + skip·branch

``z``, ``g``, ``out`` [M, D]; ``u`` [M, H] in the products' dtype; ``factor`` f [M] float32. A program holds [rows, H]
in registers and walks over D twice: once to contract it, once to expand. The weight gradients are sums over all tokens,
so the backward writes what their two products read (du, gelu(u), branch) in the same pass and leaves them to the
library. Served are half precision and H up to 256: beyond, too few rows fit beside the hidden state, and reading the
weights again for each few rows would cost more than the launches save.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aim_kernels.activations_triton import gelu_slope, gelu_value
from aim_kernels.block_shapes import block_shape, dot_precision
from aim_kernels.optional_triton import cdiv, next_power_of_2, tl, triton
from aim_kernels.registration import architecture

MAX_HIDDEN = 256


def fits(z: Tensor, hidden: int) -> bool:
    """Whether these kernels serve tokens like ``z`` and ``hidden`` units."""
    return z.dtype.itemsize == 2 and hidden <= MAX_HIDDEN


def needs_branch(g: Tensor, u: Tensor, scale: float, factor: Tensor | None) -> bool:
    """Whether the gradient of the branch is anything but ``g`` itself."""
    return factor is not None or scale != 1 or g.dtype != u.dtype


def launch_shape(direction: str, width: int, hidden: int, target: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Constants and launch options at D = ``width`` and H = ``hidden``."""
    padded = max(16, next_power_of_2(hidden))
    shape = block_shape(f"adapter_{direction}", padded, target)
    constants = {"D": width, "H": hidden, "HIDDEN": padded, "ROWS": shape.rows, "COLUMNS": shape.columns}
    return constants, {"num_warps": shape.warps, "num_stages": shape.stages}


@triton.jit
def _rows(M: tl.tensor, ROWS: tl.constexpr) -> tuple[tl.tensor, ...]:
    """This program's first row, its rows counted from there, and their mask."""
    # A 64-bit base per program and 32-bit offsets within it: tiles of 64-bit pointers would not fit the registers.
    i_row = tl.program_id(0).to(tl.int64) * ROWS
    o_row = tl.arange(0, ROWS)
    return i_row, o_row, i_row + o_row < M


@triton.jit
def _scale_of_rows(
    factor_ptr: tl.tensor, o_row: tl.tensor, m_row: tl.tensor, scale: tl.tensor, FACTOR: tl.constexpr
) -> tl.tensor:
    """f·s of each row, or s where there is no factor."""
    if FACTOR:
        return scale * tl.load(factor_ptr + o_row, mask=m_row, other=0.0)[:, None]
    else:
        return scale


@triton.jit
def adapter_forward_kernel(
    z_ptr: tl.tensor,
    w1_ptr: tl.tensor,
    b1_ptr: tl.tensor,
    w2_ptr: tl.tensor,
    b2_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    out_ptr: tl.tensor,
    u_ptr: tl.tensor,
    M: tl.tensor,
    scale: tl.tensor,
    SKIP: tl.constexpr,
    RESIDUAL: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    i_row, o_row, m_row = _rows(M, ROWS)
    z_ptr += i_row * D
    residual_ptr += i_row * D
    out_ptr += i_row * D
    o_hidden = tl.arange(0, HIDDEN)
    m_hidden = o_hidden < H
    b_u = tl.zeros([ROWS, HIDDEN], dtype=tl.float32)
    for i_column in range(0, D, COLUMNS):
        o_column = i_column + tl.arange(0, COLUMNS)
        m_column = o_column < D
        p_z = z_ptr + o_row[:, None] * D + o_column[None, :]
        b_z = tl.load(p_z, mask=m_row[:, None] & m_column[None, :], other=0.0)  # [ROWS, COLUMNS]
        p_w1 = w1_ptr + o_hidden[None, :] * D + o_column[:, None]
        b_w1 = tl.load(p_w1, mask=m_hidden[None, :] & m_column[:, None], other=0.0)  # [COLUMNS, HIDDEN]
        b_u = tl.dot(b_z, b_w1, b_u, input_precision=PRECISION)
    b_u += tl.load(b1_ptr + o_hidden, mask=m_hidden, other=0.0).to(tl.float32)[None, :]
    b_kept = b_u.to(u_ptr.dtype.element_ty)
    m_kept = m_row[:, None] & m_hidden[None, :]
    tl.store(u_ptr + i_row * H + o_row[:, None] * H + o_hidden[None, :], b_kept, mask=m_kept)
    # What the backward will read, so that both differentiate the same function.
    b_hidden = gelu_value(b_kept.to(tl.float32)).to(z_ptr.dtype.element_ty)

    b_factor = _scale_of_rows(factor_ptr + i_row, o_row, m_row, scale, FACTOR)
    for i_column in range(0, D, COLUMNS):
        o_column = i_column + tl.arange(0, COLUMNS)
        m_column = o_column < D
        m_tile = m_row[:, None] & m_column[None, :]
        o_tile = o_row[:, None] * D + o_column[None, :]
        p_w2 = w2_ptr + o_column[None, :] * H + o_hidden[:, None]
        b_w2 = tl.load(p_w2, mask=m_hidden[:, None] & m_column[None, :], other=0.0)  # [HIDDEN, COLUMNS]
        b_y = tl.dot(b_hidden, b_w2, input_precision=PRECISION)
        b_y += tl.load(b2_ptr + o_column, mask=m_column, other=0.0).to(tl.float32)[None, :]
        if SKIP:
            b_y += tl.load(z_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_y *= b_factor
        if RESIDUAL:
            b_y += tl.load(residual_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        tl.store(out_ptr + o_tile, b_y.to(out_ptr.dtype.element_ty), mask=m_tile)


@triton.jit
def adapter_backward_kernel(
    g_ptr: tl.tensor,
    u_ptr: tl.tensor,
    w1_ptr: tl.tensor,
    w2_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    dz_ptr: tl.tensor,
    du_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    branch_ptr: tl.tensor,
    M: tl.tensor,
    scale: tl.tensor,
    SKIP: tl.constexpr,
    FACTOR: tl.constexpr,
    BRANCH: tl.constexpr,
    NEEDS_DZ: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    i_row, o_row, m_row = _rows(M, ROWS)
    g_ptr += i_row * D
    dz_ptr += i_row * D
    branch_ptr += i_row * D
    o_hidden = tl.arange(0, HIDDEN)
    m_hidden = o_hidden < H
    b_factor = _scale_of_rows(factor_ptr + i_row, o_row, m_row, scale, FACTOR)
    b_dhidden = tl.zeros([ROWS, HIDDEN], dtype=tl.float32)
    for i_column in range(0, D, COLUMNS):
        o_column = i_column + tl.arange(0, COLUMNS)
        m_column = o_column < D
        m_tile = m_row[:, None] & m_column[None, :]
        o_tile = o_row[:, None] * D + o_column[None, :]
        b_g = tl.load(g_ptr + o_tile, mask=m_tile, other=0.0)
        b_branch = (b_g.to(tl.float32) * b_factor).to(u_ptr.dtype.element_ty)  # [ROWS, COLUMNS]
        if BRANCH:
            tl.store(branch_ptr + o_tile, b_branch, mask=m_tile)
        p_w2 = w2_ptr + o_column[:, None] * H + o_hidden[None, :]
        b_w2 = tl.load(p_w2, mask=m_hidden[None, :] & m_column[:, None], other=0.0)  # [COLUMNS, HIDDEN]
        b_dhidden = tl.dot(b_branch, b_w2, b_dhidden, input_precision=PRECISION)
    m_kept = m_row[:, None] & m_hidden[None, :]
    o_kept = o_row[:, None] * H + o_hidden[None, :]
    b_u = tl.load(u_ptr + i_row * H + o_kept, mask=m_kept, other=0.0).to(tl.float32)
    tl.store(hidden_ptr + i_row * H + o_kept, gelu_value(b_u).to(u_ptr.dtype.element_ty), mask=m_kept)
    b_du = (b_dhidden * gelu_slope(b_u)).to(u_ptr.dtype.element_ty)
    tl.store(du_ptr + i_row * H + o_kept, b_du, mask=m_kept)
    if NEEDS_DZ:
        for i_column in range(0, D, COLUMNS):
            o_column = i_column + tl.arange(0, COLUMNS)
            m_column = o_column < D
            m_tile = m_row[:, None] & m_column[None, :]
            o_tile = o_row[:, None] * D + o_column[None, :]
            p_w1 = w1_ptr + o_hidden[:, None] * D + o_column[None, :]
            b_w1 = tl.load(p_w1, mask=m_hidden[:, None] & m_column[None, :], other=0.0)  # [HIDDEN, COLUMNS]
            b_dz = tl.dot(b_du, b_w1, input_precision=PRECISION)
            if SKIP:
                b_dz += tl.load(g_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32) * b_factor
            tl.store(dz_ptr + o_tile, b_dz.to(dz_ptr.dtype.element_ty), mask=m_tile)


def forward(
    z: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    skip: bool,
    scale: float,
    residual: Tensor | None,
    factor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``out`` [M, D] in the dtype of ``residual``, else of ``z``; ``u`` [M, H] in that of ``z``."""
    (rows, width), hidden = z.shape, w1.shape[0]
    z = z.contiguous()
    out = z.new_empty(z.shape, dtype=z.dtype if residual is None else residual.dtype)
    u = z.new_empty((rows, hidden))
    constants, options = launch_shape("forward", width, hidden, architecture(z))
    adapter_forward_kernel[(cdiv(rows, constants["ROWS"]),)](
        z_ptr=z,
        w1_ptr=w1.contiguous(),
        b1_ptr=b1.contiguous(),
        w2_ptr=w2.contiguous(),
        b2_ptr=b2.contiguous(),
        residual_ptr=z if residual is None else residual.contiguous(),
        factor_ptr=z if factor is None else factor.float().contiguous(),
        out_ptr=out,
        u_ptr=u,
        M=rows,
        scale=scale,
        SKIP=skip,
        RESIDUAL=residual is not None,
        FACTOR=factor is not None,
        PRECISION=dot_precision(z),
        **constants,
        **options,
    )
    return out, u


def backward(
    g: Tensor,
    u: Tensor,
    w1: Tensor,
    w2: Tensor,
    skip: bool,
    scale: float,
    factor: Tensor | None,
    needs_dz: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``dz`` [M, D], ``du`` and ``gelu(u)`` [M, H], ``branch`` [M, D] in u's dtype; [0, D] for what is not needed."""
    rows, width = g.shape
    g, u = g.contiguous(), u.contiguous()
    du, hidden = u.new_empty(u.shape), u.new_empty(u.shape)
    with_branch = needs_branch(g, u, scale, factor)
    dz, branch = (u.new_empty((rows if needed else 0, width)) for needed in (needs_dz, with_branch))
    constants, options = launch_shape("backward", width, u.shape[1], architecture(u))
    adapter_backward_kernel[(cdiv(rows, constants["ROWS"]),)](
        g_ptr=g,
        u_ptr=u,
        w1_ptr=w1.contiguous(),
        w2_ptr=w2.contiguous(),
        factor_ptr=u if factor is None else factor.float().contiguous(),
        dz_ptr=dz,
        du_ptr=du,
        hidden_ptr=hidden,
        branch_ptr=branch,
        M=rows,
        scale=scale,
        SKIP=skip,
        FACTOR=factor is not None,
        BRANCH=with_branch,
        NEEDS_DZ=needs_dz,
        PRECISION=dot_precision(u),
        **constants,
        **options,
    )
    return dz, du, hidden, branch
