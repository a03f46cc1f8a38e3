"""Attention within groups of tokens that a table names, with an additive bias: Swin's windows, and time.

    out[f, table[g, i], head] = sum_j softmax_j(q[i] · k[j] / √d + bias[g, head, i, j]) v[j],  q[i] = q[f, table[g, i]]

``qkv`` [F, N, 3D] as the projection wrote it, F frames (or clips) of N tokens; ``table`` [G, L] int32: G groups of L
tokens, every token in exactly one of them, so G·L = N; ``bias`` [1 or G, h, L, L] float32: relative positions, and a
large negative number where a shifted window hides a token. ``out`` [F, N, D]. Partition, cyclic shift and their
inverses are addresses in the Triton kernels: no token is copied. Backends:

    triton     own kernels (group_attention_triton.py), groups of up to 64 tokens: windows of 7 or 8, up to 64 steps; in
               float32 groups of up to 32
    sdpa       PyTorch's attention with a dense additive bias, on gathered tokens
    xformers   memory-efficient attention with its CUTLASS operators (those with flash take no bias), likewise
    reference  two products in plain torch, likewise; what a CPU takes

Kept for backward by ``triton`` and on a CPU: qkv and the bias. Source: Liu et al., Swin Transformer, ICCV 2021, eq. 4.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import group_attention_triton
from aim_kernels.registration import operator, ops
from aim_kernels.spatial_attention import Backend, xformers_missing
from aim_kernels.spatial_attention import backend_missing as spatial_backend_missing

# as that of spatial attention
FAILED: dict[tuple[int, str], str] = {}


def group_attention(qkv: Tensor, table: Tensor, bias: Tensor, num_heads: int, backend: Backend = "auto") -> Tensor:
    """The formula above: [F, N, D] in the dtype of ``qkv``; differentiable in ``qkv`` and ``bias``.

    ``table`` must hold every token once: this is not checked. Backend "auto" is ``reference`` on a CPU; on a GPU
    ``triton`` where its kernels serve the group, else ``sdpa``. Raises ValueError for shapes and names that cannot be.
    """
    _check(qkv, table, bias, num_heads)
    missing = backend_missing(backend, qkv.device)
    if missing:
        raise ValueError(missing)
    head_dim = qkv.shape[-1] // 3 // num_heads
    half = qkv.dtype in (torch.float16, torch.bfloat16)
    if backend == "sdpa" or (backend == "auto" and qkv.is_cuda and not _fits(qkv, table, bias, num_heads)):
        return _on_gathered(_sdpa, qkv, table, bias, num_heads)
    if backend == "xformers" and half and head_dim % 8 == 0:
        return _on_gathered(_xformers, qkv, table, bias, num_heads)
    if backend in ("reference", "xformers"):
        return group_attention_reference(qkv, table, bias, num_heads)
    return ops.group_attention(qkv, table, bias, num_heads)


def backend_missing(backend: str, device: torch.device) -> str | None:
    """Why ``backend`` cannot serve tensors on ``device``, in one line; None when it can. ``sdpa`` serves a CPU too."""
    if backend == "sdpa":
        return None
    if backend in ("cudnn", "flash3"):
        return f"backend {backend} does not attend within groups: use triton or sdpa"
    if backend == "xformers" and device.type == "cuda":
        return xformers_missing(device, "cutlass")
    return spatial_backend_missing(backend, device, FAILED)


def group_attention_reference(qkv: Tensor, table: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    """The formula in plain torch, any device; scores in float32 at least, in float64 for float64."""
    return _on_gathered(_plain, qkv, table, bias, num_heads)


def group_attention_backward_reference(
    dout: Tensor, qkv: Tensor, table: Tensor, bias: Tensor, num_heads: int, needs_bias: bool = True
) -> tuple[Tensor, Tensor]:
    """``dqkv`` [F, N, 3D] and ``dbias`` in the shape of ``bias``, or [0] where it is not needed, in plain torch."""
    wide = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = _gather(qkv, table, num_heads).to(wide)  # each [F, G, h, L, d]
    order = table.flatten()
    do = dout.to(wide).index_select(1, order).unflatten(1, table.shape).unflatten(-1, (num_heads, -1)).transpose(2, 3)
    scale = q.shape[-1] ** -0.5
    p = ((q * scale) @ k.transpose(-1, -2) + bias).softmax(-1)
    dp = do @ v.transpose(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True))
    gathered = torch.stack([ds @ k * scale, ds.transpose(-1, -2) @ q * scale, p.transpose(-1, -2) @ do])
    dqkv = gathered.permute(1, 2, 4, 0, 3, 5).reshape(qkv.shape).index_select(1, order.argsort())
    dbias = ds.sum(0) if needs_bias else bias.new_empty(0)
    if needs_bias and bias.shape[0] == 1:
        dbias = dbias.sum(0, keepdim=True)
    return dqkv.to(qkv.dtype), dbias.to(bias.dtype)


def _fits(qkv: Tensor, table: Tensor, bias: Tensor, num_heads: int) -> bool:
    return group_attention_triton.fits(qkv, table.shape[1], qkv.shape[-1] // 3 // num_heads)


def _check(qkv: Tensor, table: Tensor, bias: Tensor, num_heads: int) -> None:
    if qkv.ndim != 3 or num_heads < 1 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(f"expected packed qkv [F, N, 3D], D in {num_heads} heads, got {list(qkv.shape)}")
    if table.ndim != 2 or table.numel() != qkv.shape[1]:
        raise ValueError(f"expected a table [G, L] of the {qkv.shape[1]} tokens, got {list(table.shape)}")
    groups, length = table.shape
    if bias.shape[1:] != (num_heads, length, length) or bias.shape[0] not in (1, groups):
        right = f"[1 or {groups}, {num_heads}, {length}, {length}]"
        raise ValueError(f"expected a bias {right}, got {list(bias.shape)}")


def _gather(qkv: Tensor, table: Tensor, num_heads: int) -> Tensor:
    """q, k, v of every group, [3, F, G, h, L, d]."""
    gathered = qkv.index_select(1, table.flatten()).unflatten(1, table.shape)
    return gathered.unflatten(-1, (3, num_heads, -1)).permute(3, 0, 1, 4, 2, 5)


def _on_gathered(attend: Any, qkv: Tensor, table: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    """Tokens gathered, attended to by ``attend``(q, k, v [F, G, h, L, d], bias) and put back where they were."""
    out = attend(*_gather(qkv, table, num_heads), bias)
    flat = out.transpose(2, 3).reshape(*qkv.shape[:2], qkv.shape[-1] // 3)
    return flat.index_select(1, table.flatten().argsort())


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) * q.shape[-1] ** -0.5) @ k.to(wide).transpose(-1, -2) + bias
    return (scores.softmax(-1) @ v.to(wide)).to(q.dtype)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    # Groups beside heads: the bias is then one of the batch for every frame, and no axis of the launch overflows.
    groups, heads, length = q.shape[1:4]
    mask = bias.to(q.dtype).expand(groups, heads, length, length).reshape(1, groups * heads, length, length)
    q, k, v = (x.flatten(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).unflatten(1, (groups, heads))


def _xformers(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    from xformers.ops import fmha

    frames, groups, heads, length, _ = q.shape
    # The rows of a bias must start at multiples of 8 elements: it is a slice of a wider one.
    wide = F.pad(bias.to(q.dtype).expand(groups, heads, length, length), (0, -length % 8))
    mask = wide.reshape(1, groups * heads, length, -1).expand(frames, -1, -1, -1)[..., :length]
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))  # each [F, L, G·h, d]
    out = fmha.memory_efficient_attention(q, k, v, attn_bias=mask, op=(fmha.cutlass.FwOp, fmha.cutlass.BwOp))
    return out.transpose(1, 2).unflatten(1, (groups, heads))


def _forward_fake(qkv: Tensor, table: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    return qkv.new_empty((*qkv.shape[:2], qkv.shape[-1] // 3))


def _backward_fake(
    dout: Tensor, qkv: Tensor, table: Tensor, bias: Tensor, num_heads: int, needs_bias: bool
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape if needs_bias else (0,))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, dout: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
    needs_bias = ctx.needs_input_grad[2]
    dqkv, dbias = ops.group_attention_backward(dout, *ctx.saved_tensors, ctx.num_heads, needs_bias)
    return dqkv, None, dbias if needs_bias else None, None


operator(
    "group_attention",
    "(Tensor qkv, Tensor table, Tensor bias, int num_heads) -> Tensor",
    reference=group_attention_reference,
    triton=group_attention_triton.forward,
    fits=_fits,
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_gradient,
)
operator(
    "group_attention_backward",
    "(Tensor dout, Tensor qkv, Tensor table, Tensor bias, int num_heads, bool needs_bias) -> (Tensor, Tensor)",
    reference=group_attention_backward_reference,
    triton=group_attention_triton.backward,
    fits=lambda dout, qkv, table, bias, num_heads, _: _fits(qkv, table, bias, num_heads),
    fake=_backward_fake,
)
