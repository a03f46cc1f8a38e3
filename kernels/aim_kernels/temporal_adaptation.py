"""The temporal sub-block as one differentiable function with the adapter swallowing the output projection.

    x' = x + f · (W2·gelu(W' a + b') + b2),   a = temporal attention of Wqkv z + bqkv,   W' = W1 Wo,  b' = W1 bo + b1
    z = ln_1(x), or z = s + A_in(s) with s = ln_1(x) when there is a second adapter

Shapes as in :mod:`aim_kernels.adaptation`. The D × D output projection is never applied to a token. Kept for backward,
in vectors of width D per token in the products' dtype: ``fast`` x, qkv (3), a, the second adapter's hidden state (1/4);
``balanced`` and ``lean`` x, and all else again from x. Derivation: kernels/README.md. Source: AIM (ICLR 2023).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import temporal_attention  # noqa: F401  (registers the operator)
from aim_kernels.adaptation import temporal_adaptation_reference
from aim_kernels.adapter import adapter as bottleneck
from aim_kernels.adapter import adapter_gradients
from aim_kernels.choices import Memory
from aim_kernels.column_sum import branch_gradient
from aim_kernels.folded_projection import fold_projection, folded_gradients
from aim_kernels.layer_norm import layer_norm_to_keep
from aim_kernels.memory import check_memory, copied_for_backward
from aim_kernels.precision import cast, compute_dtype
from aim_kernels.residual import residual_add, row_factor
from aim_kernels.trained_trunk import attention_branch
from aim_kernels.weights import AdapterWeights, AttentionWeights, NormWeights, Packing, recorded, require_gradient
from aim_kernels.wide_activation import gelu, gelu_backward


def temporal_adaptation(
    x: Tensor,
    norm: NormWeights,
    attention: AttentionWeights,
    num_heads: int,
    adapter: AdapterWeights,
    adapter_in: AdapterWeights | None = None,
    drop: Tensor | None = None,
    eps: float = 1e-5,
    memory: Memory = "fast",
) -> Tensor:
    """:func:`~aim_kernels.adaptation.temporal_adaptation_reference`, fused: same arguments, same value to rounding.

    Products run in autocast's dtype, else in that of ``qkv_weight``; the residual stream keeps the dtype of ``x``.
    Differentiable in ``x`` and the adapters; where a trunk weight requires a gradient, in everything, through
    :mod:`aim_kernels.trained_trunk`.
    """
    check_memory(memory)
    if not x.numel():
        return temporal_adaptation_reference(x, norm, attention, num_heads, adapter, adapter_in, drop, eps)
    if require_gradient(norm, attention):
        attended = attention_branch(x, norm, attention, num_heads, "time", adapter_in, eps)
        return bottleneck(attended, adapter, residual=x, factor=drop)
    dtype = compute_dtype(x, attention.qkv_weight)
    constants = (num_heads, eps, memory, dtype, recorded((x,), adapter, adapter_in))
    operands = _Operands(x, drop, norm, attention, adapter, adapter_in, *constants)
    return _TemporalAdaptation.apply(*_PACKING.pack(operands))


class _Operands(NamedTuple):
    x: Tensor
    drop: Tensor | None
    norm: NormWeights
    attention: AttentionWeights
    adapter: AdapterWeights
    adapter_in: AdapterWeights | None
    num_heads: int
    eps: float
    memory: Memory
    dtype: torch.dtype
    recorded: bool


_PACKING = Packing(_Operands)


class _TemporalAdaptation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *row: Any) -> Tensor:
        o = _PACKING.unpack(row)
        z, mean, rstd, x = layer_norm_to_keep(o.x, o.norm, o.eps, o.dtype, o.dtype, o.recorded)
        u_in, qkv = _project(z, o)
        del z
        a, lse = torch.ops.aim.temporal_attention(qkv, o.num_heads)
        low = cast(o.adapter, o.dtype)
        u = F.linear(_rows(a), *fold_projection(o.adapter, o.attention, low.w1))
        out = residual_add(o.x, F.linear(gelu(u), low.w2, low.b2), row_factor(o.drop, o.x))
        kept = (qkv, a, lse, u_in) if o.memory == "fast" else (None,) * 4
        _PACKING.keep(ctx, o._replace(x=x), mean, rstd, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        o, mean, rstd, qkv, a, lse, u_in = _PACKING.kept(ctx)
        needs = _PACKING.needs(ctx)
        adapter, adapter_in, norm = (copied_for_backward(w, g) for w in (o.adapter, o.adapter_in, o.norm))
        o = o._replace(adapter=adapter, adapter_in=adapter_in, norm=norm)
        low = cast(o.adapter, o.dtype)
        weight, bias = fold_projection(o.adapter, o.attention, low.w1)
        z = None
        if qkv is None:
            z, _, _ = torch.ops.aim.layer_norm(o.x, *o.norm, o.eps, o.dtype)
            u_in, qkv = _project(z, o)
            a, lse = torch.ops.aim.temporal_attention(qkv, o.num_heads)
        u = F.linear(_rows(a), weight, bias)

        branch, db2 = branch_gradient(g, o.dtype, needs.adapter.b2, row_factor(o.drop, o.x))
        du = gelu_backward(branch @ low.w2, u)
        gradients = folded_gradients(o.adapter, o.attention, needs.adapter, _rows(a), u, du, branch, db2)
        if not (needs.x or any(needs.adapter_in)):
            return _PACKING.gradients(adapter=gradients)

        da = (du @ weight).view(a.shape)
        dqkv = torch.ops.aim.temporal_attention_backward(da, qkv, a, lse, o.num_heads)
        del branch, da, qkv, a, lse  # what is formed again is held by nobody else
        dz = _rows(dqkv) @ o.attention.qkv_weight.to(o.dtype)
        del dqkv
        gradients_in = None
        if o.adapter_in is not None:
            if z is None:
                z, _, _ = torch.ops.aim.layer_norm(o.x, *o.norm, o.eps, o.dtype)
            low_in = cast(o.adapter_in, o.dtype)
            du_in = gelu_backward(dz @ low_in.w2, u_in)
            gradients_in = adapter_gradients(o.adapter_in, needs.adapter_in, _rows(z), du_in, gelu(u_in), dz)
            dz.addmm_(du_in, low_in.w1)
        dx = None
        if needs.x:
            dx = torch.ops.aim.layer_norm_backward(dz.view(o.x.shape), o.x, o.norm.weight, mean, rstd, g)
        return _PACKING.gradients(x=dx, adapter=gradients, adapter_in=gradients_in)


def _project(z: Tensor, o: _Operands) -> tuple[Tensor | None, Tensor]:
    """The second adapter's hidden state before its activation, and qkv [B, T, N, 3D]."""
    u_in, rows = None, _rows(z)
    if o.adapter_in is not None:
        low = cast(o.adapter_in, o.dtype)
        u_in = F.linear(rows, low.w1, low.b1)
        rows = rows + F.linear(gelu(u_in), low.w2, low.b2)
    qkv = F.linear(rows, o.attention.qkv_weight.to(o.dtype), o.attention.qkv_bias.to(o.dtype))
    return u_in, qkv.view(*z.shape[:-1], -1)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
