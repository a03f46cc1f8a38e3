"""Spatial attention over packed qkv: self-attention among the N tokens of each frame.

    out[b, t, n, head] = sum_m softmax_m(q[b, t, n, head] · k[b, t, m, head] / √d + bias[head, n, m]) v[b, t, m, head]

``qkv`` [B, T, N, 3D] as the projection wrote it, ``out`` [B, T, N, D], ``lse`` [B, T, h, N] float32, ``bias``
[1, h, N, N] or None, a constant (where it trains, torch's own attention runs). One forward that gives the statistics
and one backward that takes them, so that a caller decides what it keeps. Backends:

    cpu        C++ (csrc/attention.h), or the plain-torch reference where it is not built
    triton     own kernels (spatial_attention_triton.py), reading and writing the packed layout in place
    sdpa       PyTorch's flash attention, whose three gradients are packed by a copy
    cudnn      PyTorch's cuDNN attention, likewise
    xformers   memory-efficient attention with its flash operators, which pack their gradients
    flash3     the same with those of FlashAttention-3, on Hopper where ``flash_attn_3`` is installed

The libraries take no bias: triton then. All give and take the same statistics, so that where a tuning chose for
``auto``, a backward of one may follow a forward of another.

Source of the recurrence: Dao, FlashAttention-2, 2023.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import spatial_attention_triton
from aim_kernels.adaptation import attention_over_space
from aim_kernels.choices import AttentionBackend
from aim_kernels.registration import OPERATORS, architecture_of, operator, ops
from aim_kernels.temporal_attention import check_qkv

Backend = AttentionBackend
XFORMERS: dict[Backend, str] = {"xformers": "flash", "flash3": "flash3"}  # whose operators of xformers run
LIBRARIES: tuple[Backend, ...] = ("sdpa", "cudnn", *XFORMERS)
# (compute capability times ten, backend): how it failed its check on the card at hand
FAILED: dict[tuple[int, str], str] = {}


def spatial_attention(qkv: Tensor, num_heads: int, backend: Backend = "auto", bias: Tensor | None = None) -> Tensor:
    """Self-attention among the N tokens of each frame.

    ``qkv`` [B, T, N, 3D], any floating dtype; returns [B, T, N, D] in the same dtype (the autocast dtype under
    autocast). Differentiable in ``qkv`` and ``bias`` [1, h, N, N]. ``backend`` "auto" takes C++ on a CPU and Triton on
    a GPU; see :func:`backend_missing` for what the others need. Raises ValueError for shapes and names that cannot be.
    """
    check_qkv(qkv, num_heads)
    missing = backend_missing(backend, qkv.device)
    if missing:
        raise ValueError(missing)
    check_bias(bias, num_heads, qkv.shape[2])
    if bias is not None and bias.requires_grad:
        return attention_over_space(qkv, num_heads, bias)
    return ops.spatial_attention(qkv, num_heads, backend, bias)[0]


def check_bias(bias: Tensor | None, num_heads: int, tokens: int) -> None:
    """Raises ValueError for a bias on the scores that is not [1, h, N, N]."""
    if bias is not None and bias.shape != (1, num_heads, tokens, tokens):
        raise ValueError(f"expected a bias {[1, num_heads, tokens, tokens]}, got {list(bias.shape)}")


def backend_missing(backend: str, device: torch.device, failed: Mapping[tuple[int, str], str] = FAILED) -> str | None:
    """Why ``backend`` cannot serve tensors on ``device``, in one line; None when it can."""
    if backend not in get_args(Backend):
        return f"backend {backend!r} is none of {', '.join(get_args(Backend))}"
    if backend in ("auto", "reference"):
        return None
    if backend == "cpu":
        return None if device.type == "cpu" else f"backend cpu does not serve a {device.type} tensor: use auto"
    if device.type != "cuda":
        return f"backend {backend} needs a CUDA tensor, this one is on {device.type}: use auto"
    if fault := failed and failed.get((architecture_of(device), backend)):
        return f"backend {backend} failed its check on {torch.cuda.get_device_name(device)}: {fault}; use auto"
    return xformers_missing(device, XFORMERS[backend]) if backend in XFORMERS else None


def spatial_attention_reference(qkv: Tensor, num_heads: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``out``, ``lse`` in plain torch, computed in the precision of ``lse``: float64 for float64, else float32."""
    q, k, v = _heads(qkv.to(torch.promote_types(qkv.dtype, torch.float32)), num_heads)  # each [B, T, h, N, d]
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias.to(scores.dtype)
    out = scores.softmax(-1) @ v
    return out.transpose(2, 3).flatten(-2).to(qkv.dtype), scores.logsumexp(-1)


def spatial_attention_backward_reference(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, bias: Tensor | None = None
) -> Tensor:
    """``dqkv`` [B, T, N, 3D] in plain torch, in the precision of ``lse``."""
    q, k, v = _heads(qkv.to(lse.dtype), num_heads)
    do = dout.to(lse.dtype).unflatten(-1, (num_heads, q.shape[-1])).transpose(2, 3)
    scale = q.shape[-1] ** -0.5
    scores = (q @ k.transpose(-1, -2)) * scale
    p = ((scores if bias is None else scores + bias.to(scores.dtype)) - lse[..., None]).exp()
    dp = do @ v.transpose(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
    dqkv = torch.stack([ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ do])  # [3, B, T, h, N, d]
    return dqkv.permute(1, 2, 4, 0, 3, 5).reshape(qkv.shape).to(qkv.dtype)


def _heads(qkv: Tensor, num_heads: int) -> Tensor:
    """[3, B, T, h, N, d], a view."""
    head_dim = qkv.shape[-1] // 3 // num_heads
    return qkv.unflatten(-1, (3, num_heads, head_dim)).permute(3, 0, 1, 4, 2, 5)


def xformers_missing(device: torch.device, family: str) -> str | None:
    """Why xformers' ``family`` of operators, as "flash" or "cutlass", cannot serve a CUDA device; None when it can."""
    try:
        from xformers.ops import fmha
    except (ImportError, OSError) as error:
        return f"xformers does not load ({error}): use backend triton or sdpa"
    small = torch.empty(1, 16, 1, 64, dtype=torch.float16, device=device)
    for op in (getattr(fmha, family).FwOp, getattr(fmha, family).BwOp):
        if reasons := op.not_supported_reasons(fmha.Inputs(small, small, small)):
            return f"xformers is here, but its {op.NAME} does not run ({reasons[0]}): use backend triton or sdpa"
    return None


def _frames(x: Tensor, num_heads: int, packed: int = 3) -> Tensor:
    """qkv [B, T, N, 3D] as [B·T, N, 3, h, d]; out or its gradient, [B, T, N, D], as [B·T, N, 1, h, d]."""
    b, t, n, width = x.shape
    return x.reshape(b * t, n, packed, num_heads, width // packed // num_heads)


def _fits(qkv: Tensor, num_heads: int, backend: str, bias: Tensor | None = None) -> bool:
    served = backend in ("auto", "triton") or (bias is not None and backend in LIBRARIES)
    return served and qkv.shape[-1] // 3 // num_heads <= spatial_attention_triton.MAX_HEAD_DIM


def _forward_triton(qkv: Tensor, num_heads: int, backend: str, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    out, lse = spatial_attention_triton.forward(_frames(qkv, num_heads), bias)
    return _as_clips(qkv, out, lse)


def _backward_triton(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, backend: str, bias: Tensor | None = None
) -> Tensor:
    frames, (do, o) = _frames(qkv, num_heads), (_frames(x, num_heads, 1).squeeze(2) for x in (dout, out))
    return spatial_attention_triton.backward(do, frames, o, lse.flatten(0, 1), bias).view_as(qkv)


def _forward_cpp(qkv: Tensor, num_heads: int, backend: str, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if backend == "reference":
        return spatial_attention_reference(qkv, num_heads, bias)
    frames = _frames(qkv, num_heads).unsqueeze(2)
    out, lse = torch.ops.aim_cpu.attention_forward(frames, None if bias is None else _padded(bias, frames))
    return _as_clips(qkv, out, lse)


def _backward_cpp(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, backend: str, bias: Tensor | None = None
) -> Tensor:
    if backend == "reference":
        return spatial_attention_backward_reference(dout, qkv, out, lse, num_heads, bias)
    do, o = (_frames(x.contiguous(), num_heads, 1) for x in (dout, out))
    frames = _frames(qkv, num_heads).unsqueeze(2)
    padded = None if bias is None else _padded(bias.transpose(-1, -2), frames)
    return torch.ops.aim_cpu.attention_backward(do, frames, o, lse.flatten(0, 1), padded).view(qkv.shape)


def _padded(bias: Tensor, frames: Tensor) -> Tensor:
    """``bias`` as csrc/attention.h reads it: by the scale, its rows in whole vectors of 16."""
    return F.pad(bias[0].float() * frames.shape[-1] ** 0.5, (0, -bias.shape[-1] % 16)).contiguous()


def _forward_library(qkv: Tensor, num_heads: int, backend: str, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The backends of libraries where they serve ``qkv``, else plain torch."""
    if bias is not None or not _library_serves(qkv, num_heads, backend):
        return spatial_attention_reference(qkv, num_heads, bias)
    q, k, v = _frames(qkv, num_heads).unbind(2)
    if backend not in XFORMERS:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if backend == "cudnn":
            out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
        else:
            out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
        return _as_clips(qkv, out.transpose(1, 2), lse)
    from xformers.ops import fmha

    op = getattr(fmha, XFORMERS[backend]).FwOp
    return _as_clips(qkv, *fmha.memory_efficient_attention_forward_requires_grad(q, k, v, op=op))


def _backward_library(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, backend: str, bias: Tensor | None = None
) -> Tensor:
    if bias is not None or not _library_serves(qkv, num_heads, backend):
        return spatial_attention_backward_reference(dout, qkv, out, lse, num_heads, bias)
    q, k, v = _frames(qkv, num_heads).unbind(2)
    do, o = (_frames(x.contiguous(), num_heads, 1).squeeze(2) for x in (dout, out))
    n, lse = qkv.shape[2], lse.flatten(0, 1)
    if backend not in XFORMERS:
        q, k, v, do, o = (x.transpose(1, 2) for x in (q, k, v, do, o))
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=qkv.device)
        if backend == "cudnn":
            seed = no_dropout[0].view(torch.int64)
            gradients = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
                *(do, q, k, v, o, lse[..., None], seed, seed, None, None, None, n, n), *(0.0, False)
            )
        else:
            gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
                *(do, q, k, v, o, lse, None, None, n, n), *(0.0, False, no_dropout, no_dropout)
            )
        return _side_by_side([x.transpose(1, 2) for x in gradients]).view(qkv.shape)
    from xformers.ops import fmha

    op = getattr(fmha, XFORMERS[backend]).BwOp
    return _side_by_side(fmha.memory_efficient_attention_backward(do, o, lse, q, k, v, op=op)).view(qkv.shape)


def _side_by_side(gradients: Sequence[Tensor]) -> Tensor:
    """dq, dk, dv [F, N, h, d] as [F, N, 3, h, d]: where they lie so already, as they are."""
    first = gradients[0]
    frames, n, heads, head_dim = first.shape
    width = heads * head_dim
    strides = (3 * n * width, 3 * width, width, head_dim, 1)
    for place, x in enumerate(gradients):
        here = x.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        offset = first.storage_offset() + place * width
        if not here or x.storage_offset() != offset or x.stride() != (*strides[:2], *strides[3:]):
            return torch.stack(list(gradients), 2)
    return first.as_strided((frames, n, 3, heads, head_dim), strides)


def _library_serves(qkv: Tensor, num_heads: int, backend: str) -> bool:
    half = qkv.dtype in (torch.float16, torch.bfloat16)
    return backend in LIBRARIES and half and not (qkv.shape[-1] // 3 // num_heads) % 8 and qkv.numel() > 0


def _forward_by(library: str, qkv: Tensor, num_heads: int, _: str, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _forward_library(qkv, num_heads, library, bias)


def _backward_by(
    library: str,
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    _: str,
    bias: Tensor | None = None,
) -> Tensor:
    return _backward_library(dout, qkv, out, lse, num_heads, library, bias)


def _as_clips(qkv: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """out [B·T, N, h, d] (an axis of 1 beside) as [B, T, N, D], lse [B·T, h, N] as [B, T, h, N]."""
    b, t, n, packed = qkv.shape
    return out.reshape(b, t, n, packed // 3), lse.reshape(b, t, -1, n)


def _forward_fake(qkv: Tensor, num_heads: int, backend: str, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    b, t, n, packed = qkv.shape
    statistics = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty((b, t, n, packed // 3)), qkv.new_empty((b, t, num_heads, n), dtype=statistics)


def _backward_fake(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, backend: str, bias: Tensor | None = None
) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.num_heads, ctx.backend, bias = inputs
    ctx.save_for_backward(qkv, *output, bias)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
    qkv, out, lse, bias = ctx.saved_tensors
    constants = (ctx.num_heads, ctx.backend, bias)
    return ops.spatial_attention_backward(dout, qkv, out, lse, *constants), None, None, None


operator(
    "spatial_attention",
    "(Tensor qkv, int num_heads, str backend, Tensor? bias=None) -> (Tensor, Tensor)",
    reference=_forward_library,
    triton=_forward_triton,
    cpp=_forward_cpp,
    fits=_fits,
    libraries={name: functools.partial(_forward_by, name) for name in LIBRARIES},
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_gradient,
    autocast=True,
)
operator(  # the same, run again for a backward: see memory.py
    "spatial_attention_recomputed",
    "(Tensor qkv, int num_heads, str backend, Tensor? bias, Tensor after) -> (Tensor, Tensor)",
    reference=lambda *operands: OPERATORS["spatial_attention"](*operands[:4]),
    fake=lambda *operands: _forward_fake(*operands[:4]),
)
operator(
    "spatial_attention_backward",
    "(Tensor dout, Tensor qkv, Tensor out, Tensor lse, int num_heads, str backend, Tensor? bias=None) -> Tensor",
    reference=_backward_library,
    triton=_backward_triton,
    cpp=_backward_cpp,
    fits=lambda dout, qkv, out, lse, *others: _fits(qkv, *others),
    libraries={name: functools.partial(_backward_by, name) for name in LIBRARIES},
    fake=_backward_fake,
)
