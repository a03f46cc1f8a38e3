"""Triton kernels of spatial attention: flash attention on packed qkv, for image-sized sequences.

``frames`` [F, N, 3, h, d] with contiguous d, out [F, N, h, d], lse [F, h, N]. Forward: online softmax over blocks of
keys. Backward without atomics, into the packed layout. In one kernel where a program has room for dK and dV of all keys
of a frame and head: it goes over blocks of queries, whose dQ is whole at once, five products a tile. In two elsewhere:
dQ by blocks of queries, which also writes lse and D = rowsum(dO ∘ O) into rows of a length divisible by 16, that both
are read several at once; then dK and dV by blocks of keys; seven products. A bias [1, h, N, N] is read where the scores
are formed.
A frame's base is an int64 offset; within a frame int32 serves (the launcher sees to it) and halves the registers of the
addresses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_kernels.block_shapes import APART, BlockShape, block_shape, dot_precision
from aim_kernels.optional_triton import cdiv, next_power_of_2, tl, triton
from aim_kernels.registration import alike, architecture

MAX_HEAD_DIM = 128
_WIDEST = 64  # heads whose dK and dV of all keys lie in registers


@triton.jit
def _place(heads: tl.tensor, blocks: tl.tensor) -> tuple[tl.tensor, ...]:
    """This program's block of a frame, head and frame."""
    i_program = tl.program_id(0).to(tl.int64)
    return (i_program % blocks).to(tl.int32), (i_program // blocks) % heads, i_program // blocks // heads


@triton.jit
def _bias_tile(head_ptr: tl.tensor, o_row: tl.tensor, o_key: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """The biases of these rows and keys, times log2(e)."""
    b_bias = tl.load(head_ptr + o_row * N + o_key, mask=(o_row < N) & (o_key < N), other=0.0)
    return b_bias.to(tl.float32) * 1.4426950408889634


@triton.jit
def spatial_attention_forward_kernel(
    qkv_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    heads: tl.tensor,
    blocks: tl.tensor,
    stride_frame: tl.tensor,
    stride_token: tl.tensor,
    scale: tl.tensor,
    N: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    i_block, i_head, i_frame = _place(heads, blocks)
    D = heads * HEAD
    o_row = i_block * ROWS + tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    m_column = (o_column < HEAD)[None, :]
    p_frame = qkv_ptr + i_frame * stride_frame + i_head * HEAD + o_column[None, :]
    m_row = (o_row < N)[:, None] & m_column
    b_q = tl.load(p_frame + o_row[:, None] * stride_token, mask=m_row, other=0.0)  # [ROWS, COLUMNS]
    b_max = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    b_o = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i_key in range(0, N, KEYS):
        o_key = i_key + tl.arange(0, KEYS)
        m_key = (o_key < N)[:, None] & m_column
        p_key = p_frame + o_key[:, None] * stride_token
        b_k = tl.load(p_key + D, mask=m_key, other=0.0)  # [KEYS, COLUMNS]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * (scale * 1.4426950408889634)
        if BIAS:
            b_s += _bias_tile(bias_ptr + i_head * N * N, o_row[:, None], o_key[None, :], N)
        b_s = tl.where((o_key < N)[None, :], b_s, float("-inf"))
        b_top = tl.maximum(b_max, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_top[:, None])
        b_decay = tl.exp2(b_max - b_top)
        b_sum = b_sum * b_decay + tl.sum(b_p, 1)
        b_v = tl.load(p_key + 2 * D, mask=m_key, other=0.0)
        b_o = b_o * b_decay[:, None]
        b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o, input_precision=PRECISION)
        b_max = b_top
    p_out = out_ptr + i_frame * N * D + i_head * HEAD + (o_row * D)[:, None] + o_column[None, :]
    tl.store(p_out, (b_o / b_sum[:, None]).to(out_ptr.dtype.element_ty), mask=m_row)
    tl.store(
        lse_ptr + (i_frame * heads + i_head) * N + o_row, (b_max + tl.log2(b_sum)) * 0.6931471805599453, mask=o_row < N
    )


@triton.jit
def spatial_attention_backward_queries_kernel(
    dout_ptr: tl.tensor,
    qkv_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    statistics_ptr: tl.tensor,
    dqkv_ptr: tl.tensor,
    heads: tl.tensor,
    blocks: tl.tensor,
    stride_frame: tl.tensor,
    stride_token: tl.tensor,
    scale: tl.tensor,
    N: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    i_block, i_head, i_frame = _place(heads, blocks)
    D = heads * HEAD
    PADDED: tl.constexpr = (N + 15) // 16 * 16
    o_row = i_block * ROWS + tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    m_column = (o_column < HEAD)[None, :]
    m_row = (o_row < N)[:, None] & m_column
    p_frame = qkv_ptr + i_frame * stride_frame + i_head * HEAD + o_column[None, :]
    i_out = i_frame * N * D + i_head * HEAD
    o_out = (o_row * D)[:, None] + o_column[None, :]
    i_sequence = i_frame * heads + i_head
    b_q = tl.load(p_frame + o_row[:, None] * stride_token, mask=m_row, other=0.0)
    b_do = tl.load(dout_ptr + i_out + o_out, mask=m_row, other=0.0)
    b_o = tl.load(out_ptr + i_out + o_out, mask=m_row, other=0.0)
    b_delta = tl.sum(b_do.to(tl.float32) * b_o.to(tl.float32), 1)
    b_lse = tl.load(lse_ptr + i_sequence * N + o_row, mask=o_row < N, other=0.0) * 1.4426950408889634
    p_statistics = statistics_ptr + i_sequence * 2 * PADDED + o_row
    tl.store(p_statistics, b_lse, mask=o_row < PADDED)  # zero for the rows of padding, like their delta
    tl.store(p_statistics + PADDED, b_delta, mask=o_row < PADDED)
    b_dq = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i_key in range(0, N, KEYS):
        o_key = i_key + tl.arange(0, KEYS)
        m_key = (o_key < N)[:, None] & m_column
        p_key = p_frame + o_key[:, None] * stride_token
        b_k = tl.load(p_key + D, mask=m_key, other=0.0)
        b_v = tl.load(p_key + 2 * D, mask=m_key, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * (scale * 1.4426950408889634)
        if BIAS:
            b_s += _bias_tile(bias_ptr + i_head * N * N, o_row[:, None], o_key[None, :], N)
        b_p = tl.where((o_key < N)[None, :], tl.exp2(b_s - b_lse[:, None]), 0.0)
        b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
        b_ds = (b_p * (b_dp - b_delta[:, None]) * scale).to(b_k.dtype)
        b_dq = tl.dot(b_ds, b_k, b_dq, input_precision=PRECISION)
    p_dq = dqkv_ptr + i_frame * N * 3 * D + i_head * HEAD + (o_row * 3 * D)[:, None] + o_column[None, :]
    tl.store(p_dq, b_dq.to(dqkv_ptr.dtype.element_ty), mask=m_row)


@triton.jit
def spatial_attention_backward_keys_kernel(
    dout_ptr: tl.tensor,
    qkv_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    statistics_ptr: tl.tensor,
    dqkv_ptr: tl.tensor,
    heads: tl.tensor,
    blocks: tl.tensor,
    stride_frame: tl.tensor,
    stride_token: tl.tensor,
    scale: tl.tensor,
    N: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    i_block, i_head, i_frame = _place(heads, blocks)
    D = heads * HEAD
    PADDED: tl.constexpr = (N + 15) // 16 * 16
    p_statistics = statistics_ptr + (i_frame * heads + i_head) * 2 * PADDED
    o_key = i_block * KEYS + tl.arange(0, KEYS)
    o_column = tl.arange(0, COLUMNS)
    m_column = (o_column < HEAD)[None, :]
    m_key = (o_key < N)[:, None] & m_column
    p_frame = qkv_ptr + i_frame * stride_frame + i_head * HEAD + o_column[None, :]
    b_k = tl.load(p_frame + o_key[:, None] * stride_token + D, mask=m_key, other=0.0)  # [KEYS, COLUMNS]
    b_v = tl.load(p_frame + o_key[:, None] * stride_token + 2 * D, mask=m_key, other=0.0)
    p_dout = dout_ptr + i_frame * N * D + i_head * HEAD + o_column[None, :]
    b_dk = tl.zeros([KEYS, COLUMNS], tl.float32)
    b_dv = tl.zeros([KEYS, COLUMNS], tl.float32)
    for i_row in range(0, N, ROWS):
        o_row = i_row + tl.arange(0, ROWS)
        m_row = (o_row < N)[:, None] & m_column
        b_q = tl.load(p_frame + o_row[:, None] * stride_token, mask=m_row, other=0.0)
        b_do = tl.load(p_dout + (o_row * D)[:, None], mask=m_row, other=0.0)
        b_lse = tl.load(p_statistics + o_row, mask=o_row < PADDED, other=0.0)
        b_delta = tl.load(p_statistics + PADDED + o_row, mask=o_row < PADDED, other=0.0)
        b_st = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * (scale * 1.4426950408889634)
        if BIAS:
            b_st += _bias_tile(bias_ptr + i_head * N * N, o_row[None, :], o_key[:, None], N)
        b_pt = tl.where((o_row < N)[None, :], tl.exp2(b_st - b_lse[None, :]), 0.0)  # [KEYS, ROWS]
        b_dv = tl.dot(b_pt.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
        b_dpt = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
        b_dst = (b_pt * (b_dpt - b_delta[None, :]) * scale).to(b_q.dtype)
        b_dk = tl.dot(b_dst, b_q, b_dk, input_precision=PRECISION)
    p_dk = dqkv_ptr + i_frame * N * 3 * D + i_head * HEAD + (o_key * 3 * D)[:, None] + o_column[None, :]
    tl.store(p_dk + D, b_dk.to(dqkv_ptr.dtype.element_ty), mask=m_key)
    tl.store(p_dk + 2 * D, b_dv.to(dqkv_ptr.dtype.element_ty), mask=m_key)


@triton.jit
def spatial_attention_backward_kernel(
    dout_ptr: tl.tensor,
    qkv_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    dqkv_ptr: tl.tensor,
    heads: tl.tensor,
    stride_frame: tl.tensor,
    stride_token: tl.tensor,
    scale: tl.tensor,
    N: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    _, i_head, i_frame = _place(heads, 1)
    D = heads * HEAD
    o_key = tl.arange(0, KEYS)
    o_column = tl.arange(0, COLUMNS)
    m_column = (o_column < HEAD)[None, :]
    m_key = (o_key < N)[:, None] & m_column
    p_frame = qkv_ptr + i_frame * stride_frame + i_head * HEAD + o_column[None, :]
    b_k = tl.load(p_frame + o_key[:, None] * stride_token + D, mask=m_key, other=0.0)  # [KEYS, COLUMNS]
    b_v = tl.load(p_frame + o_key[:, None] * stride_token + 2 * D, mask=m_key, other=0.0)
    i_out = i_frame * N * D + i_head * HEAD
    p_lse = lse_ptr + (i_frame * heads + i_head) * N
    p_dqkv = dqkv_ptr + i_frame * N * 3 * D + i_head * HEAD
    b_dk = tl.zeros([KEYS, COLUMNS], tl.float32)
    b_dv = tl.zeros([KEYS, COLUMNS], tl.float32)
    for i_row in range(0, N, ROWS):
        o_row = i_row + tl.arange(0, ROWS)
        m_row = (o_row < N)[:, None] & m_column
        o_out = (o_row * D)[:, None] + o_column[None, :]
        b_q = tl.load(p_frame + o_row[:, None] * stride_token, mask=m_row, other=0.0)  # [ROWS, COLUMNS]
        b_do = tl.load(dout_ptr + i_out + o_out, mask=m_row, other=0.0)
        b_o = tl.load(out_ptr + i_out + o_out, mask=m_row, other=0.0)
        b_delta = tl.sum(b_do.to(tl.float32) * b_o.to(tl.float32), 1)
        b_lse = tl.load(p_lse + o_row, mask=o_row < N, other=0.0) * 1.4426950408889634
        b_st = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * (scale * 1.4426950408889634)
        # of padding's queries q and dO are zero, of its keys K alone, whose P may lie beyond float32
        b_pt = tl.where((o_key < N)[:, None], tl.exp2(b_st - b_lse[None, :]), 0.0)  # [KEYS, ROWS]
        b_dv = tl.dot(b_pt.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
        b_dpt = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
        b_dst = (b_pt * (b_dpt - b_delta[None, :]) * scale).to(b_q.dtype)
        b_dk = tl.dot(b_dst, b_q, b_dk, input_precision=PRECISION)
        b_dqt = tl.dot(tl.trans(b_k), b_dst, input_precision=PRECISION)  # 64 rows of a tile for wgmma: [COLUMNS, ROWS]
        p_dq = p_dqkv + (o_row * 3 * D)[None, :] + o_column[:, None]
        tl.store(p_dq, b_dqt.to(dqkv_ptr.dtype.element_ty), mask=(o_row < N)[None, :] & (o_column < HEAD)[:, None])
    p_dk = p_dqkv + (o_key * 3 * D)[:, None] + o_column[None, :]
    tl.store(p_dk + D, b_dk.to(dqkv_ptr.dtype.element_ty), mask=m_key)
    tl.store(p_dk + 2 * D, b_dv.to(dqkv_ptr.dtype.element_ty), mask=m_key)


def launch_shape(
    kernel: str, head_dim: int, target: int, itemsize: int = 2, tokens: int = 0
) -> tuple[dict[str, Any], dict[str, int]]:
    """Constants and launch options of "forward", "backward_queries" or "backward_keys"."""
    return launched(block_shape(f"spatial_attention_{kernel}", head_dim, target, itemsize, tokens), head_dim)


def backward_shape(head_dim: int, target: int, itemsize: int = 2, tokens: int = 0) -> BlockShape:
    """Of the backward in one kernel, without a bias; APART where two are taken."""
    if head_dim > _WIDEST:
        return APART
    return block_shape("spatial_attention_backward", next_power_of_2(tokens), target, itemsize, tokens)


def launched(shape: BlockShape, head_dim: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Constants and launch options of ``shape``."""
    constants = {
        "HEAD": head_dim,
        "ROWS": shape.rows,
        "KEYS": shape.columns,
        "COLUMNS": max(16, next_power_of_2(head_dim)),
    }
    return constants, {"num_warps": shape.warps, "num_stages": shape.stages}


def forward(frames: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``out`` [F, N, h, d] and ``lse`` [F, h, N] of ``frames`` [F, N, 3, h, d], ``bias`` [1, h, N, N]."""
    frames = _packed(frames)
    f, n, _, heads, head_dim = frames.shape
    out = frames.new_empty((f, n, heads, head_dim))
    lse = frames.new_empty((f, heads, n), dtype=torch.float32)
    constants, options = launch_shape("forward", head_dim, *_kind(frames))
    blocks = cdiv(n, constants["ROWS"])
    spatial_attention_forward_kernel[(f * heads * blocks,)](
        qkv_ptr=frames,
        out_ptr=out,
        lse_ptr=lse,
        blocks=blocks,
        **_arguments(frames, bias),
        **constants,
        **options,
    )
    return out, lse


def backward(dout: Tensor, frames: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None = None) -> Tensor:
    """``dqkv`` [F, N, 3, h, d], contiguous."""
    frames, dout, out = _packed(frames), dout.contiguous(), out.contiguous()
    f, n, _, heads, head_dim = frames.shape
    dqkv = alike(frames)
    whole = APART if bias is not None else backward_shape(head_dim, *_kind(frames))
    if whole != APART:
        constants, options = launched(whole, head_dim)
        spatial_attention_backward_kernel[(f * heads,)](
            dout_ptr=dout,
            qkv_ptr=frames,
            out_ptr=out,
            lse_ptr=lse,
            dqkv_ptr=dqkv,
            **_sizes(frames),
            **constants,
            **options,
        )
        return dqkv
    statistics = lse.new_empty((f, heads, 2, cdiv(n, 16) * 16))
    constants, options = launch_shape("backward_queries", head_dim, *_kind(frames))
    blocks = cdiv(n, constants["ROWS"])
    spatial_attention_backward_queries_kernel[(f * heads * blocks,)](
        dout_ptr=dout,
        qkv_ptr=frames,
        out_ptr=out,
        lse_ptr=lse,
        statistics_ptr=statistics,
        dqkv_ptr=dqkv,
        blocks=blocks,
        **_arguments(frames, bias),
        **constants,
        **options,
    )
    constants, options = launch_shape("backward_keys", head_dim, *_kind(frames))
    blocks = cdiv(n, constants["KEYS"])
    spatial_attention_backward_keys_kernel[(f * heads * blocks,)](
        dout_ptr=dout,
        qkv_ptr=frames,
        statistics_ptr=statistics,
        dqkv_ptr=dqkv,
        blocks=blocks,
        **_arguments(frames, bias),
        **constants,
        **options,
    )
    return dqkv


def _kind(frames: Tensor) -> tuple[int, int, int]:
    return architecture(frames), frames.dtype.itemsize, frames.shape[1]


def _packed(frames: Tensor) -> Tensor:
    """``frames`` if q, k, v and the heads of a token lie side by side, else a contiguous copy."""
    _, n, _, heads, head_dim = frames.shape
    inner = (heads * head_dim, head_dim, 1)
    near = 0 <= frames.stride(1) * n < 2**31
    return frames if near and frames.stride()[2:] == inner else frames.contiguous()


def _arguments(frames: Tensor, bias: Tensor | None) -> dict[str, Any]:
    return {
        "bias_ptr": frames if bias is None else bias.contiguous(),
        "BIAS": bias is not None,
        **_sizes(frames),
    }


def _sizes(frames: Tensor) -> dict[str, Any]:
    return {
        "N": frames.shape[1],
        "heads": frames.shape[3],
        "stride_frame": frames.stride(0),
        "stride_token": frames.stride(1),
        "scale": frames.shape[-1] ** -0.5,
        "PRECISION": dot_precision(frames),
    }
