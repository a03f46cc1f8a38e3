"""Temporal attention over packed qkv, in place.

    out[b, t, n, head] = sum_s softmax_s(q[b, t, n, head] · k[b, s, n, head] / √d) v[b, s, n, head]

``qkv`` [B, T, N, 3D] as the projection wrote it (q, k, v, each h heads of d channels), ``out`` [B, T, N, D],
``lse`` [B, N, h, T] float32 the logarithm of the softmax's denominator. Source: AIM (ICLR 2023), section 3.2: the image
model's spatial attention run over the T tokens at one spatial position; B·N·h sequences of T tokens.

The sequences are short, so on a GPU ``rows // T`` neighbouring positions share one tensor-core tile under a
block-diagonal mask; nothing is rearranged in memory, before or after. The backward needs qkv, out and lse:

    P = exp(S − lse),  dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P ∘ (dP − rowsum(dO ∘ O)) / √d,  dQ = dS K,  dK = dSᵀ Q
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_kernels.block_shapes import block_shape, dot_precision
from aim_kernels.optional_triton import cdiv, next_power_of_2, tl, triton
from aim_kernels.registration import alike, architecture, operator, ops

MAX_FRAMES = 64  # of the fused kernels; longer clips run the reference
MAX_HEAD_DIM = 128


def temporal_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Self-attention among the T tokens at each spatial position.

    ``qkv`` [B, T, N, 3D], any floating dtype, last axis packed as q, k, v; returns [B, T, N, D] in the same dtype (the
    autocast dtype under autocast). Differentiable in ``qkv``. Raises ValueError for a shape that cannot be.
    """
    check_qkv(qkv, num_heads)
    return ops.temporal_attention(qkv, num_heads)[0]


def temporal_attention_reference(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """``out``, ``lse`` in plain torch, any floating dtype and device, computed in the precision of ``lse``: float64 for
    float64 input, else float32."""
    b, t, n, packed = qkv.shape
    precise = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = _unpack(qkv, num_heads).to(precise).permute(3, 0, 2, 4, 1, 5)  # each [B, N, h, T, d]
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    out = scores.softmax(-1) @ v
    return out.permute(0, 3, 1, 2, 4).reshape(b, t, n, packed // 3).to(qkv.dtype), scores.logsumexp(-1)


def temporal_attention_backward_reference(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int
) -> Tensor:
    """``dqkv`` [B, T, N, 3D] by the formulas above, in plain torch, in the precision of ``lse``.

    With all of P at hand, rowsum(dO ∘ O) is had as rowsum(P ∘ dP), which needs no rounded ``out``.
    """
    b, t, n, _ = qkv.shape
    q, k, v = _unpack(qkv, num_heads).to(lse.dtype).permute(3, 0, 2, 4, 1, 5)
    do = dout.reshape(b, t, n, num_heads, q.shape[-1]).to(lse.dtype).permute(0, 2, 3, 1, 4)
    scale = q.shape[-1] ** -0.5
    p = ((q @ k.transpose(-1, -2)) * scale - lse[..., None]).exp()
    dp = do @ v.transpose(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
    dqkv = torch.stack([ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ do])  # [3, B, N, h, T, d]
    return dqkv.permute(1, 4, 2, 0, 3, 5).reshape(qkv.shape).to(qkv.dtype)


def check_qkv(qkv: Tensor, num_heads: int) -> None:
    """Raises ValueError unless ``qkv`` is floating [B, T, N, 3·h·d] for ``num_heads`` heads."""
    if qkv.ndim != 4 or num_heads < 1 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(f"expected packed qkv [B, T, N, 3·{num_heads}·d], got {list(qkv.shape)}")
    if not qkv.is_floating_point():
        raise ValueError(f"expected floating qkv, got {qkv.dtype}")


@triton.jit
def _tile(
    N: tl.tensor,
    heads: tl.tensor,
    groups: tl.tensor,
    T: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """This program's clip, first channel, and rows: their sequence, t and n, with the masks of rows and of the tile."""
    i_program = tl.program_id(0).to(tl.int64)
    i_head = i_program % heads
    i_group = (i_program // heads) % groups
    i_b = i_program // heads // groups
    o_row = tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    o_sequence = o_row // T
    o_t = (o_row % T).to(tl.int64)
    o_n = i_group * (ROWS // T) + o_sequence
    m_row = (o_sequence < ROWS // T) & (o_n < N)
    m_tile = m_row[:, None] & (o_column < HEAD)[None, :]
    o_channel = (i_head * HEAD + o_column)[None, :]
    o_token = (i_b * T + o_t) * N + o_n
    o_lse = ((i_b * N + o_n) * heads + i_head) * T + o_t
    return i_b, o_sequence, o_t, o_n, o_channel, o_token, o_lse, m_row, m_tile


@triton.jit
def temporal_attention_forward_kernel(
    qkv_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    N: tl.tensor,
    heads: tl.tensor,
    groups: tl.tensor,
    stride_b: tl.tensor,
    stride_t: tl.tensor,
    stride_n: tl.tensor,
    scale: tl.tensor,
    T: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    i_b, o_sequence, o_t, o_n, o_channel, o_token, o_lse, m_row, m_tile = _tile(
        N, heads, groups, T, HEAD, ROWS, COLUMNS
    )
    D = heads * HEAD
    p_q = qkv_ptr + i_b * stride_b + (o_t * stride_t + o_n * stride_n)[:, None] + o_channel
    b_q = tl.load(p_q, mask=m_tile, other=0.0)  # [ROWS, COLUMNS]
    b_k = tl.load(p_q + D, mask=m_tile, other=0.0)
    b_v = tl.load(p_q + 2 * D, mask=m_tile, other=0.0)

    # Rows of padding form sequences of their own, so no row of the softmax is empty.
    m_same = o_sequence[:, None] == o_sequence[None, :]
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * (scale * 1.4426950408889634)
    b_s = tl.where(m_same, b_s, float("-inf"))  # [ROWS, ROWS]
    b_max = tl.max(b_s, 1)
    b_p = tl.exp2(b_s - b_max[:, None])
    b_sum = tl.sum(b_p, 1)
    b_o = tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION) / b_sum[:, None]
    tl.store(out_ptr + (o_token * D)[:, None] + o_channel, b_o.to(out_ptr.dtype.element_ty), mask=m_tile)
    tl.store(lse_ptr + o_lse, (b_max + tl.log2(b_sum)) * 0.6931471805599453, mask=m_row)


@triton.jit
def temporal_attention_backward_kernel(
    dout_ptr: tl.tensor,
    qkv_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    dqkv_ptr: tl.tensor,
    N: tl.tensor,
    heads: tl.tensor,
    groups: tl.tensor,
    stride_b: tl.tensor,
    stride_t: tl.tensor,
    stride_n: tl.tensor,
    scale: tl.tensor,
    T: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    i_b, o_sequence, o_t, o_n, o_channel, o_token, o_lse, m_row, m_tile = _tile(
        N, heads, groups, T, HEAD, ROWS, COLUMNS
    )
    D = heads * HEAD
    p_q = qkv_ptr + i_b * stride_b + (o_t * stride_t + o_n * stride_n)[:, None] + o_channel
    b_q = tl.load(p_q, mask=m_tile, other=0.0)  # [ROWS, COLUMNS]
    b_k = tl.load(p_q + D, mask=m_tile, other=0.0)
    b_do = tl.load(dout_ptr + (o_token * D)[:, None] + o_channel, mask=m_tile, other=0.0)
    b_lse = tl.load(lse_ptr + o_lse, mask=m_row, other=0.0) * 1.4426950408889634

    m_same = o_sequence[:, None] == o_sequence[None, :]
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * (scale * 1.4426950408889634)
    b_p = tl.where(m_same, tl.exp2(b_s - b_lse[:, None]), 0.0)  # [ROWS, ROWS]
    p_dq = dqkv_ptr + (o_token * 3 * D)[:, None] + o_channel
    b_dv = tl.dot(tl.trans(b_p.to(b_do.dtype)), b_do, input_precision=PRECISION)
    tl.store(p_dq + 2 * D, b_dv.to(dqkv_ptr.dtype.element_ty), mask=m_tile)

    b_v = tl.load(p_q + 2 * D, mask=m_tile, other=0.0)
    b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
    b_delta = tl.sum(b_p * b_dp, 1)  # of whole rows of the softmax: the output need not be read
    b_ds = (b_p * (b_dp - b_delta[:, None]) * scale).to(b_q.dtype)
    b_dq = tl.dot(b_ds, b_k, input_precision=PRECISION)
    tl.store(p_dq, b_dq.to(dqkv_ptr.dtype.element_ty), mask=m_tile)
    b_dk = tl.dot(tl.trans(b_ds), b_q, input_precision=PRECISION)
    tl.store(p_dq + D, b_dk.to(dqkv_ptr.dtype.element_ty), mask=m_tile)


def launch_shape(
    kernel: str, frames: int, head_dim: int, target: int, itemsize: int = 2
) -> tuple[dict[str, Any], dict[str, int]]:
    """Constants and launch options of a kernel at T = ``frames``: what a launch and an ahead-of-time compile share."""
    shape = block_shape(f"temporal_attention_{kernel}", head_dim, target, itemsize, frames)
    rows = max(shape.rows, next_power_of_2(frames))
    constants = {"T": frames, "HEAD": head_dim, "ROWS": rows, "COLUMNS": max(16, next_power_of_2(head_dim))}
    return constants, {"num_warps": shape.warps, "num_stages": shape.stages}


def _forward_triton(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    out, lse = _forward_fake(qkv, num_heads)
    _launch("forward", qkv, num_heads, out_ptr=out, lse_ptr=lse)
    return out, lse


def _backward_triton(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int) -> Tensor:
    dqkv = alike(qkv)
    _launch("backward", qkv, num_heads, dout_ptr=dout.contiguous(), lse_ptr=lse, dqkv_ptr=dqkv)
    return dqkv


def _launch(direction: str, qkv: Tensor, num_heads: int, **tensors: Tensor) -> None:
    b, t, n, packed = qkv.shape
    if qkv.stride(-1) != 1:
        qkv = qkv.contiguous()
    head_dim = packed // 3 // num_heads
    constants, options = launch_shape(direction, t, head_dim, architecture(qkv), qkv.dtype.itemsize)
    groups = cdiv(n, constants["ROWS"] // t)
    (temporal_attention_forward_kernel if direction == "forward" else temporal_attention_backward_kernel)[
        (b * groups * num_heads,)
    ](
        qkv_ptr=qkv,
        **tensors,
        N=n,
        heads=num_heads,
        groups=groups,
        stride_b=qkv.stride(0),
        stride_t=qkv.stride(1),
        stride_n=qkv.stride(2),
        scale=head_dim**-0.5,
        PRECISION=dot_precision(qkv),
        **constants,
        **options,
    )


def _fits(qkv: Tensor, num_heads: int) -> bool:
    """Whether the Triton kernels serve ``qkv``; in float32 a tile longer than the table's would spill."""
    head_dim, itemsize = qkv.shape[-1] // 3 // num_heads, qkv.dtype.itemsize
    if head_dim > MAX_HEAD_DIM:
        return False
    longest = block_shape("temporal_attention_backward", head_dim, 0, itemsize).rows if itemsize == 4 else MAX_FRAMES
    return qkv.shape[1] <= longest


def _forward_cpp(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aim_cpu.attention_forward(_unpack(qkv, num_heads))
    return out.flatten(-2), lse


def _backward_cpp(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int) -> Tensor:
    heads = _unpack(qkv, num_heads)
    dout, out = (x.contiguous().unflatten(-1, heads.shape[-2:]) for x in (dout, out))
    return torch.ops.aim_cpu.attention_backward(dout, heads, out, lse).flatten(-3)


def _unpack(qkv: Tensor, num_heads: int) -> Tensor:
    """[B, T, N, 3, h, d], a view of any [B, T, N, 3D] whose last axis is contiguous."""
    head_dim = qkv.shape[-1] // 3 // num_heads
    return (qkv if qkv.stride(-1) == 1 else qkv.contiguous()).unflatten(-1, (3, num_heads, head_dim))


def _forward_fake(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    b, t, n, packed = qkv.shape
    statistics = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty((b, t, n, packed // 3)), qkv.new_empty((b, n, num_heads, t), dtype=statistics)


def _backward_fake(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int) -> Tensor:
    return alike(qkv)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.num_heads = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor, None]:
    qkv, out, lse = ctx.saved_tensors
    return ops.temporal_attention_backward(dout, qkv, out, lse, ctx.num_heads), None


operator(
    "temporal_attention",
    "(Tensor qkv, int num_heads) -> (Tensor, Tensor)",
    reference=temporal_attention_reference,
    triton=_forward_triton,
    cpp=_forward_cpp,
    fits=_fits,
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_gradient,
    autocast=True,
)
operator(
    "temporal_attention_backward",
    "(Tensor dout, Tensor qkv, Tensor out, Tensor lse, int num_heads) -> Tensor",
    reference=temporal_attention_backward_reference,
    triton=_backward_triton,
    cpp=_backward_cpp,
    fits=lambda dout, qkv, out, lse, num_heads: _fits(qkv, num_heads),
    fake=_backward_fake,
)
