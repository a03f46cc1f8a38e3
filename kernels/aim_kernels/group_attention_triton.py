"""Triton kernels of attention within groups: a whole group of up to 64 tokens in one tile, read through its table.

``qkv`` [F, N, 3D], ``table`` [G, L] int32, ``bias`` [1 or G, h, L, L] float32, out [F, N, D]. A program of the forward
has one group of one frame and one head: scores, softmax and output never leave it, so nothing but qkv is kept. A
program of the backward runs the softmax again; where the bias wants a gradient it goes through ``SPAN`` groups that
share their bias and sums its gradient in registers: no atomics, the same bits every time. A frame's base is an int64
offset, within a frame int32 serves (the launcher sees to it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_kernels.block_shapes import block_shape, dot_precision
from aim_kernels.optional_triton import cdiv, next_power_of_2, tl, triton
from aim_kernels.registration import architecture

MAX_LENGTH = 64
MAX_HEAD_DIM = 128
SPAN = 64  # groups that a backward program sums the gradient of their common bias over


@triton.jit
def _exponentials(
    b_q: tl.tensor, b_k: tl.tensor, b_bias: tl.tensor, m_row: tl.tensor, scale: tl.tensor, PRECISION: tl.constexpr
) -> tl.tensor:
    """The softmax of a group before it is divided by its rows' sums, [ROWS, ROWS]."""
    b_s = (tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale + b_bias) * 1.4426950408889634
    b_s = tl.where(m_row[None, :], b_s, float("-inf"))
    return tl.exp2(b_s - tl.max(b_s, 1)[:, None])


@triton.jit
def group_attention_forward_kernel(
    qkv_ptr: tl.tensor,
    table_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    heads: tl.tensor,
    groups: tl.tensor,
    bias_groups: tl.tensor,
    tokens: tl.tensor,
    scale: tl.tensor,
    L: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    i_program = tl.program_id(0).to(tl.int64)
    i_head = (i_program % heads).to(tl.int32)
    i_group = ((i_program // heads) % groups).to(tl.int32)
    i_frame = i_program // heads // groups
    D = heads * HEAD
    o_row = tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    m_row = o_row < L
    m_tile = m_row[:, None] & (o_column < HEAD)[None, :]
    m_score = m_row[:, None] & m_row[None, :]
    o_token = tl.load(table_ptr + i_group * L + o_row, mask=m_row, other=0)
    o_tile = (o_token * 3 * D)[:, None] + (i_head * HEAD + o_column)[None, :]
    p_frame = qkv_ptr + i_frame * tokens * 3 * D + o_tile
    b_q = tl.load(p_frame, mask=m_tile, other=0.0)  # [ROWS, COLUMNS]
    b_k = tl.load(p_frame + D, mask=m_tile, other=0.0)
    b_v = tl.load(p_frame + 2 * D, mask=m_tile, other=0.0)
    p_bias = bias_ptr + ((i_group % bias_groups).to(tl.int64) * heads + i_head) * L * L
    b_bias = tl.load(p_bias + (o_row * L)[:, None] + o_row[None, :], mask=m_score, other=0.0)  # [ROWS, ROWS]
    b_p = _exponentials(b_q, b_k, b_bias, m_row, scale, PRECISION)
    b_o = tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION) / tl.sum(b_p, 1)[:, None]
    p_out = out_ptr + i_frame * tokens * D + (o_token * D)[:, None] + (i_head * HEAD + o_column)[None, :]
    tl.store(p_out, b_o.to(out_ptr.dtype.element_ty), mask=m_tile)


@triton.jit
def group_attention_backward_kernel(
    dout_ptr: tl.tensor,
    qkv_ptr: tl.tensor,
    table_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    dqkv_ptr: tl.tensor,
    dbias_ptr: tl.tensor,
    heads: tl.tensor,
    groups: tl.tensor,
    bias_groups: tl.tensor,
    frames: tl.tensor,
    tokens: tl.tensor,
    scale: tl.tensor,
    L: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    i_program = tl.program_id(0).to(tl.int64)
    i_head = (i_program % heads).to(tl.int32)
    i_bias = ((i_program // heads) % bias_groups).to(tl.int32)
    i_chunk = (i_program // heads // bias_groups).to(tl.int32)
    D = heads * HEAD
    o_row = tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    m_row = o_row < L
    m_column = (o_column < HEAD)[None, :]
    m_score = m_row[:, None] & m_row[None, :]
    o_score = (o_row * L)[:, None] + o_row[None, :]
    o_head = (i_head * HEAD + o_column)[None, :]
    i_table = i_bias.to(tl.int64) * heads + i_head
    b_bias = tl.load(bias_ptr + i_table * L * L + o_score, mask=m_score, other=0.0)
    b_dbias = tl.zeros([ROWS, ROWS], tl.float32)
    sharing = groups // bias_groups  # groups of a frame with this bias: all of them, or the one
    for i_step in range(SPAN):
        i_sequence = i_chunk * SPAN + i_step
        i_frame = (i_sequence // sharing).to(tl.int64)
        i_group = i_bias + i_sequence % sharing
        m_here = m_row & (i_frame < frames)
        m_tile = m_here[:, None] & m_column
        o_token = tl.load(table_ptr + i_group * L + o_row, mask=m_here, other=0)
        o_tile = i_frame * tokens * 3 * D + (o_token * 3 * D)[:, None] + o_head
        b_q = tl.load(qkv_ptr + o_tile, mask=m_tile, other=0.0)
        b_k = tl.load(qkv_ptr + o_tile + D, mask=m_tile, other=0.0)
        b_v = tl.load(qkv_ptr + o_tile + 2 * D, mask=m_tile, other=0.0)
        b_do = tl.load(dout_ptr + i_frame * tokens * D + (o_token * D)[:, None] + o_head, mask=m_tile, other=0.0)
        b_p = _exponentials(b_q, b_k, b_bias, m_row, scale, PRECISION)
        b_p = tl.where(m_row[:, None], b_p / tl.sum(b_p, 1)[:, None], 0.0)
        b_dv = tl.dot(tl.trans(b_p.to(b_do.dtype)), b_do, input_precision=PRECISION)
        tl.store(dqkv_ptr + o_tile + 2 * D, b_dv.to(dqkv_ptr.dtype.element_ty), mask=m_tile)
        b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
        b_ds = b_p * (b_dp - tl.sum(b_p * b_dp, 1)[:, None])
        b_low = (b_ds * scale).to(b_q.dtype)
        b_dq = tl.dot(b_low, b_k, input_precision=PRECISION)
        b_dk = tl.dot(tl.trans(b_low), b_q, input_precision=PRECISION)
        tl.store(dqkv_ptr + o_tile, b_dq.to(dqkv_ptr.dtype.element_ty), mask=m_tile)
        tl.store(dqkv_ptr + o_tile + D, b_dk.to(dqkv_ptr.dtype.element_ty), mask=m_tile)
        if NEEDS_BIAS:
            b_dbias += b_ds
    if NEEDS_BIAS:
        p_dbias = dbias_ptr + (i_chunk.to(tl.int64) * bias_groups * heads + i_table) * L * L
        tl.store(p_dbias + o_score, b_dbias, mask=m_score)


def fits(qkv: Tensor, length: int, head_dim: int) -> bool:
    """Whether these kernels serve groups of ``length`` tokens; in float32 larger tiles would spill."""
    half = qkv.dtype.itemsize == 2
    return length <= (MAX_LENGTH if half else MAX_LENGTH // 2) and head_dim <= (MAX_HEAD_DIM if half else 64)


def launch_shape(
    direction: str, length: int, head_dim: int, target: int, itemsize: int = 2
) -> tuple[dict[str, Any], dict[str, int]]:
    """Constants and launch options of "forward" or "backward"."""
    rows = max(16, next_power_of_2(length))
    shape = block_shape(f"group_attention_{direction}", rows, target, itemsize)
    columns = max(16, next_power_of_2(head_dim))
    constants = {"L": length, "HEAD": head_dim, "ROWS": rows, "COLUMNS": columns}
    return constants, {"num_warps": shape.warps, "num_stages": shape.stages}


def forward(qkv: Tensor, table: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    """``out`` [F, N, D], contiguous."""
    qkv = _packed(qkv)
    frames, tokens, packed = qkv.shape
    groups, length = table.shape
    head_dim = packed // 3 // num_heads
    out = qkv.new_empty((frames, tokens, packed // 3))
    constants, options = launch_shape("forward", length, head_dim, architecture(qkv), qkv.dtype.itemsize)
    group_attention_forward_kernel[(frames * groups * num_heads,)](
        qkv_ptr=qkv,
        out_ptr=out,
        **_arguments(qkv, table, bias, num_heads),
        **constants,
        **options,
    )
    return out


def backward(
    dout: Tensor, qkv: Tensor, table: Tensor, bias: Tensor, num_heads: int, needs_bias: bool
) -> tuple[Tensor, Tensor]:
    """``dqkv`` [F, N, 3D] and ``dbias`` in the shape of ``bias``, or [0] where it is not needed; contiguous."""
    qkv, dout = _packed(qkv), dout.contiguous()
    frames, _, packed = qkv.shape
    groups, length = table.shape
    span = SPAN if needs_bias else 1
    chunks = cdiv(frames * groups // bias.shape[0], span)
    dqkv = qkv.new_empty(qkv.shape)
    partial = bias.new_empty((chunks, *bias.shape) if needs_bias else (0,), dtype=torch.float32)
    constants, options = launch_shape(
        "backward", length, packed // 3 // num_heads, architecture(qkv), qkv.dtype.itemsize
    )
    group_attention_backward_kernel[(chunks * bias.shape[0] * num_heads,)](
        dout_ptr=dout,
        qkv_ptr=qkv,
        dqkv_ptr=dqkv,
        dbias_ptr=partial,
        frames=frames,
        SPAN=span,
        NEEDS_BIAS=needs_bias,
        **_arguments(qkv, table, bias, num_heads),
        **constants,
        **options,
    )
    return dqkv, partial.sum(0).to(bias.dtype) if needs_bias else partial.to(bias.dtype)


def _packed(qkv: Tensor) -> Tensor:
    _, tokens, packed = qkv.shape
    if tokens * packed >= 2**31:
        raise ValueError(f"group_attention: {tokens} tokens of {packed} channels are more than one offset reaches")
    return qkv.contiguous()


def _arguments(qkv: Tensor, table: Tensor, bias: Tensor, num_heads: int) -> dict[str, Any]:
    return {
        "table_ptr": table.to(torch.int32).contiguous(),
        "bias_ptr": bias.float().contiguous(),
        "heads": num_heads,
        "groups": table.shape[0],
        "bias_groups": bias.shape[0],
        "tokens": qkv.shape[1],
        "scale": (qkv.shape[-1] // 3 // num_heads) ** -0.5,
        "PRECISION": dot_precision(qkv),
    }
