"""Triton kernel of the rotation of packed queries and keys: one, forward and backward by the sign of the sines.

A program has ROWS tokens of one head of q, k or v, and reads each channel's partner beside it, which lies in the same
lines. Channels that do not turn, of values and prefix tokens, are copied. The mathematics is in
:mod:`aim_kernels.rotation`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aim_kernels.block_shapes import block_shape
from aim_kernels.optional_triton import cdiv, next_power_of_2, tl, triton
from aim_kernels.registration import architecture

MAX_HEAD_DIM = 256


@triton.jit
def rotation_kernel(
    qkv_ptr: tl.tensor,
    table_ptr: tl.tensor,
    out_ptr: tl.tensor,
    M: tl.tensor,
    heads: tl.tensor,
    prefix: tl.tensor,
    stride_head: tl.tensor,
    N: tl.constexpr,
    HEAD: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    i_program = tl.program_id(0).to(tl.int64)
    i_part = i_program % (3 * heads)  # of q, k, v and a head
    o_row = i_program // (3 * heads) * ROWS + tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    m_column = o_column < HEAD
    m_tile = (o_row < M)[:, None] & m_column[None, :]
    HALF: tl.constexpr = HEAD // 2
    if INTERLEAVED:
        o_pair, o_partner, m_first = o_column // 2, o_column ^ 1, o_column % 2 == 0
    else:
        o_pair, m_first = o_column % HALF, o_column < HALF
        o_partner = tl.where(m_first, o_column + HALF, o_column - HALF)
    i_base = o_row[:, None] * (3 * heads * HEAD) + i_part * HEAD
    b_x = tl.load(qkv_ptr + i_base + o_column[None, :], mask=m_tile, other=0.0)  # [ROWS, COLUMNS]
    o_position = (o_row % N).to(tl.int32) - prefix
    m_turned = m_tile & (o_position >= 0)[:, None] & (i_part < 2 * heads)
    b_partner = tl.load(qkv_ptr + i_base + o_partner[None, :], mask=m_turned, other=0.0).to(tl.float32)
    p_table = table_ptr + i_part % heads * stride_head + o_position[:, None] * HEAD + o_pair[None, :]
    b_sin = tl.load(p_table, mask=m_turned, other=0.0).to(tl.float32)
    b_cos = tl.load(p_table + HALF, mask=m_turned, other=0.0).to(tl.float32)
    b_sin = tl.where(m_first[None, :] ^ INVERSE, -b_sin, b_sin)
    b_y = (b_x.to(tl.float32) * b_cos + b_partner * b_sin).to(b_x.dtype)
    tl.store(out_ptr + i_base + o_column[None, :], tl.where(m_turned, b_y, b_x), mask=m_tile)


def launch_shape(head_dim: int, target: int, itemsize: int = 2) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and launch options."""
    shape = block_shape("rotation", head_dim, target, itemsize)
    constants = {"HEAD": head_dim, "ROWS": shape.rows, "COLUMNS": next_power_of_2(head_dim)}
    return constants, {"num_warps": shape.warps, "num_stages": shape.stages}


def rotate(qkv: Tensor, table: Tensor, num_heads: int, interleaved: bool, inverse: bool) -> Tensor:
    """``qkv`` [B, T, N, 3D] rotated, contiguous."""
    qkv, table = qkv.contiguous(), table.to(torch.float32).contiguous()
    out = qkv.new_empty(qkv.shape)
    rows = qkv.numel() // qkv.shape[-1]
    constants, options = launch_shape(table.shape[-1], architecture(qkv), qkv.dtype.itemsize)
    rotation_kernel[(cdiv(rows, constants["ROWS"]) * 3 * num_heads,)](
        qkv_ptr=qkv,
        table_ptr=table,
        out_ptr=out,
        M=rows,
        heads=num_heads,
        prefix=qkv.shape[2] - table.shape[-2],
        stride_head=table.stride(0) if table.ndim == 3 else 0,
        N=qkv.shape[2],
        INTERLEAVED=interleaved,
        INVERSE=inverse,
        **constants,
        **options,
    )
    return out
