"""Spatial attention over packed qkv: self-attention among the N tokens of each frame.

    out[b, t, n, head] = sum_m softmax_m(q[b, t, n, head] · k[b, t, m, head] / √d) v[b, t, m, head]

``qkv`` [B, T, N, 3D] as the projection wrote it, ``out`` [B, T, N, D], ``lse`` [B, T, h, N] float32. One forward that
gives the statistics and one backward that takes them, so that a caller decides what it keeps. Backends:

    cpu        C++ (csrc/attention.h), or the plain-torch reference where it is not built
    triton     own kernels (spatial_attention_triton.py), reading and writing the packed layout in place
    sdpa       PyTorch's flash attention, whose three gradients are packed by a copy
    xformers   memory-efficient attention with its flash operators, likewise

Source of the recurrence: Dao, FlashAttention-2, 2023.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from aim_kernels import extension, spatial_attention_triton
from aim_kernels.registration import register, register_autocast, register_gradient, runs_triton
from aim_kernels.temporal_attention import check_qkv

Backend = Literal["auto", "cpu", "reference", "triton", "sdpa", "xformers"]


def spatial_attention(qkv: Tensor, num_heads: int, backend: Backend = "auto") -> Tensor:
    """Self-attention among the N tokens of each frame.

    ``qkv`` [B, T, N, 3D], any floating dtype; returns [B, T, N, D] in the same dtype (the autocast dtype under
    autocast). Differentiable in ``qkv``. ``backend`` "auto" takes C++ on a CPU and Triton on a GPU; see
    :func:`backend_missing` for what the others need. Raises ValueError for shapes and names that cannot be.
    """
    check_qkv(qkv, num_heads)
    return torch.ops.aim.spatial_attention(qkv, num_heads, backend)[0]


def backend_missing(backend: str, device: torch.device) -> str | None:
    """Why ``backend`` cannot serve tensors on ``device``, in one line; None when it can."""
    if backend not in get_args(Backend):
        return f"backend {backend!r} is none of {', '.join(get_args(Backend))}"
    if backend in ("auto", "reference"):
        return None
    if backend == "cpu":
        return None if device.type == "cpu" else f"backend cpu does not serve a {device.type} tensor: use auto"
    if device.type != "cuda":
        return f"backend {backend} needs a CUDA tensor, this one is on {device.type}: use auto"
    if backend == "xformers":
        return _xformers_missing()
    return None


def spatial_attention_reference(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """``out``, ``lse`` in plain torch, computed in the precision of ``lse``: float64 for float64, else float32."""
    q, k, v = _heads(qkv.to(torch.promote_types(qkv.dtype, torch.float32)), num_heads)  # each [B, T, h, N, d]
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    out = scores.softmax(-1) @ v
    return out.transpose(2, 3).flatten(-2).to(qkv.dtype), scores.logsumexp(-1)


def spatial_attention_backward_reference(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int) -> Tensor:
    """``dqkv`` [B, T, N, 3D] in plain torch, in the precision of ``lse``."""
    q, k, v = _heads(qkv.to(lse.dtype), num_heads)
    do = dout.to(lse.dtype).unflatten(-1, (num_heads, q.shape[-1])).transpose(2, 3)
    scale = q.shape[-1] ** -0.5
    p = ((q @ k.transpose(-1, -2)) * scale - lse[..., None]).exp()
    dp = do @ v.transpose(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
    dqkv = torch.stack([ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ do])  # [3, B, T, h, N, d]
    return dqkv.permute(1, 2, 4, 0, 3, 5).reshape(qkv.shape).to(qkv.dtype)


def _heads(qkv: Tensor, num_heads: int) -> Tensor:
    """[3, B, T, h, N, d], a view."""
    head_dim = qkv.shape[-1] // 3 // num_heads
    return qkv.unflatten(-1, (3, num_heads, head_dim)).permute(3, 0, 1, 4, 2, 5)


def _xformers_missing() -> str | None:
    try:
        from xformers.ops import fmha
    except (ImportError, OSError) as error:
        return f"xformers does not load ({error}): use backend triton or sdpa"
    if not (fmha.flash.FwOp.is_available() and fmha.flash.BwOp.is_available()):
        return "xformers is here without flash operators for this CUDA build: use backend triton or sdpa"
    return None


def _resolve(qkv: Tensor, num_heads: int, backend: str) -> str:
    missing = backend_missing(backend, qkv.device)
    if missing:
        raise ValueError(missing)
    if backend == "auto":
        backend = "triton" if qkv.is_cuda else "cpu"
    if backend == "cpu" and not extension.supports(qkv):
        return "reference"
    head_dim = qkv.shape[-1] // 3 // num_heads
    if backend == "triton" and not (runs_triton(qkv) and head_dim <= spatial_attention_triton.MAX_HEAD_DIM):
        return "reference"
    if backend in ("sdpa", "xformers") and (qkv.dtype not in (torch.float16, torch.bfloat16) or head_dim % 8):
        return "reference"
    return backend


def _forward(qkv: Tensor, num_heads: int, backend: str) -> tuple[Tensor, Tensor]:
    backend = _resolve(qkv, num_heads, backend)
    b, t, n, packed = qkv.shape
    head_dim = packed // 3 // num_heads
    if not qkv.numel():
        return _forward_fake(qkv, num_heads, backend)
    if backend == "reference":
        out, lse = spatial_attention_reference(qkv, num_heads)
        return out.contiguous(), lse.contiguous()
    frames = qkv.reshape(b * t, n, 3, num_heads, head_dim)
    if backend == "cpu":
        out, lse = torch.ops.aim_cpu.attention_forward(frames.unsqueeze(2))
    elif backend == "triton":
        out, lse = spatial_attention_triton.forward(frames)
    elif backend == "sdpa":
        q, k, v = (x.transpose(1, 2) for x in frames.unbind(2))
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
        out = out.transpose(1, 2)
    else:
        from xformers.ops import fmha

        q, k, v = frames.unbind(2)
        out, lse = fmha.memory_efficient_attention_forward_requires_grad(q, k, v, op=fmha.flash.FwOp)
    return out.reshape(b, t, n, packed // 3).contiguous(), lse.reshape(b, t, num_heads, n).contiguous()


def _backward(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, backend: str) -> Tensor:
    backend = _resolve(qkv, num_heads, backend)
    b, t, n, packed = qkv.shape
    if not qkv.numel():
        return qkv.new_empty(qkv.shape)
    if backend == "reference" or not (backend != "cpu" or extension.supports(dout, out)):
        return spatial_attention_backward_reference(dout, qkv, out, lse, num_heads).contiguous()
    frames = qkv.reshape(b * t, n, 3, num_heads, packed // 3 // num_heads)
    dout, out = (x.contiguous().view(b * t, n, *frames.shape[-2:]) for x in (dout, out))
    lse = lse.view(b * t, num_heads, n)
    if backend == "cpu":
        dqkv = torch.ops.aim_cpu.attention_backward(dout.unsqueeze(2), frames.unsqueeze(2), out.unsqueeze(2), lse)
    elif backend == "triton":
        dqkv = spatial_attention_triton.backward(dout, frames, out, lse)
    elif backend == "sdpa":
        q, k, v = (x.transpose(1, 2) for x in frames.unbind(2))
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=qkv.device)
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            *(dout.transpose(1, 2), q, k, v, out.transpose(1, 2), lse, None, None, n, n),
            *(0.0, False, no_dropout, no_dropout),
        )
        dqkv = torch.stack([x.transpose(1, 2) for x in gradients], 2)
    else:
        from xformers.ops import fmha

        q, k, v = frames.unbind(2)
        dqkv = torch.stack(fmha.memory_efficient_attention_backward(dout, out, lse, q, k, v, op=fmha.flash.BwOp), 2)
    return dqkv.reshape(qkv.shape).contiguous()


def _forward_fake(qkv: Tensor, num_heads: int, backend: str) -> tuple[Tensor, Tensor]:
    b, t, n, packed = qkv.shape
    statistics = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty((b, t, n, packed // 3)), qkv.new_empty((b, t, num_heads, n), dtype=statistics)


def _backward_fake(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, backend: str) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int, str], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.num_heads, ctx.backend = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    qkv, out, lse = ctx.saved_tensors
    return torch.ops.aim.spatial_attention_backward(dout, qkv, out, lse, ctx.num_heads, ctx.backend), None, None


register(
    "spatial_attention",
    "(Tensor qkv, int num_heads, str backend) -> (Tensor, Tensor)",
    cpu=_forward,
    cuda=_forward,
    fake=_forward_fake,
)
register(  # the same, run again for a backward: see recomputation.py
    "spatial_attention_again",
    "(Tensor qkv, int num_heads, str backend, Tensor after) -> (Tensor, Tensor)",
    cpu=lambda qkv, num_heads, backend, after: _forward(qkv, num_heads, backend),
    cuda=lambda qkv, num_heads, backend, after: _forward(qkv, num_heads, backend),
    fake=lambda qkv, num_heads, backend, after: _forward_fake(qkv, num_heads, backend),
)
register(
    "spatial_attention_backward",
    "(Tensor dout, Tensor qkv, Tensor out, Tensor lse, int num_heads, str backend) -> Tensor",
    cpu=_backward,
    cuda=_backward,
    fake=_backward_fake,
)
register_gradient("spatial_attention", _gradient, _setup_context)
register_autocast("spatial_attention")
