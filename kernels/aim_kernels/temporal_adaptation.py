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
from aim_kernels.bias_gradients import gelu_gradients
from aim_kernels.choices import Memory
from aim_kernels.formed_adapter import formed_of, plain
from aim_kernels.memory import check_memory, copied_for_backward
from aim_kernels.precision import compute_dtype
from aim_kernels.registration import ops
from aim_kernels.residual import row_factor
from aim_kernels.scaled_product import input_gradient, product
from aim_kernels.shared_norms import (
    Ahead,
    Normed,
    add_and_norm,
    arrive,
    constants_of,
    depart,
    left,
    norm_before,
    normed_of,
)
from aim_kernels.trained_trunk import attention_branch
from aim_kernels.weights import (
    NOT_FORMED,
    UNSCALED,
    AdapterNeeds,
    AdapterWeights,
    AttentionWeights,
    FormedAdapter,
    Keeping,
    NormWeights,
    ScaledRows,
    ScaledTrunk,
    UnitNorm,
    apply,
    recorded,
    require_gradient,
)
from aim_kernels.wide_activation import gelu


def temporal_adaptation(
    x: Tensor,
    norm: NormWeights,
    attention: AttentionWeights,
    num_heads: int,
    adapter: AdapterWeights | FormedAdapter,
    adapter_in: AdapterWeights | FormedAdapter | None = None,
    drop: Tensor | None = None,
    eps: float = 1e-5,
    memory: Memory = "fast",
    scaled: ScaledTrunk = UNSCALED,
    before: Ahead | None = None,
    ahead: Ahead | None = None,
) -> Tensor:
    """:func:`~aim_kernels.adaptation.temporal_adaptation_reference`, fused: same arguments, same value to rounding.

    Products run in autocast's dtype, else in that of ``qkv_weight``, those of the weights that are ``scaled`` in eight
    bits; the residual stream keeps the dtype of ``x``. The adapters may have been formed before, where the trunk is
    frozen. With a :class:`~aim_kernels.weights.UnitNorm`, which a second adapter cannot read, the weights are folded.
    ``before`` and ``ahead`` are the norms of ``x`` and of the output, where neighbours share them
    (:mod:`aim_kernels.shared_norms`).
    Differentiable in ``x`` and the adapters; where a trunk weight requires a gradient, in everything, through
    :mod:`aim_kernels.trained_trunk`.
    """
    check_memory(memory)
    if not x.numel():
        adapters = plain(adapter), plain(adapter_in)
        return temporal_adaptation_reference(x, norm, attention, num_heads, *adapters, drop, eps)
    if require_gradient(norm, attention):
        attended = attention_branch(x, norm, attention, num_heads, "time", plain(adapter_in), eps, scaled=scaled)
        return bottleneck(attended, plain(adapter), residual=x, factor=drop)
    dtype = compute_dtype(x, attention.qkv_weight)
    ready, ready_in = formed_of(adapter, dtype, reads=attention[2:]), formed_of(adapter_in, dtype)
    normed, factor, unit = normed_of(x, before), row_factor(drop, x), isinstance(norm, UnitNorm)
    constants = (num_heads, eps, memory, dtype, recorded((x,), ready, ready_in), unit, scaled)
    operands = _Operands(x, normed, ahead, factor, norm, attention, ready, ready_in, *constants)
    out = apply(_TemporalAdaptation, operands, x, normed and normed.y, *ready, *(ready_in or NOT_FORMED))
    return out if ahead is None else ahead.filled(out)


class _Operands(NamedTuple):
    x: Tensor
    normed: Normed | None
    ahead: Ahead | None
    factor: Tensor | None  # [rows] droppath's
    norm: NormWeights
    attention: AttentionWeights
    adapter: FormedAdapter
    adapter_in: FormedAdapter | None
    num_heads: int
    eps: float
    memory: Memory
    dtype: torch.dtype
    recorded: bool
    unit: bool  # whether the norm is a UnitNorm
    scaled: Any  # ScaledTrunk, which is no tensor of autograd's


_KEEPING = Keeping(_Operands, given=2)


class _TemporalAdaptation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: _Operands, *_: Tensor | None) -> Any:
        normed = o.normed or _norm(o, o.norm, o.recorded)
        mean, rstd, kept_x = normed.mean, normed.rstd, normed.kept_of(o.x)
        u_in, qkv = _project(normed.rows, o)
        del normed
        a, lse = ops.temporal_attention(qkv, o.num_heads)
        w = o.adapter
        branch = F.linear(gelu(F.linear(_rows(a), w.w1, w.low_b1)), w.w2, w.low_b2)
        out = add_and_norm(o.x, branch, o.factor, None, o.ahead, o.dtype)
        kept = (qkv, a, lse, u_in) if o.memory == "fast" else (None,) * 4
        _KEEPING.keep(ctx, kept_x, o, *left(out, o.ahead), mean, rstd, *kept)
        constants_of(ctx, out)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor, dy: Tensor | None = None, *_: None) -> tuple[Any, ...]:
        o, *found, mean, rstd, qkv, a, lse, u_in = _KEEPING.kept(ctx)
        _, needs_x, given, *flags = ctx.needs_input_grad
        needs, needs_in = AdapterNeeds(*flags[:6]), AdapterNeeds(*flags[6:])
        adapter, adapter_in, norm = (copied_for_backward(w, g) for w in (o.adapter, o.adapter_in, o.norm))
        o = o._replace(adapter=adapter, adapter_in=adapter_in, norm=norm)
        w = o.adapter
        z: Any = None  # plain rows where an adapter reads them
        if qkv is None:
            z = _rows(o.x) if o.unit else _norm(o, o.norm, False).rows
            u_in, qkv = _project(z, o)
            z = None if o.adapter_in is None else z
            a, lse = ops.temporal_attention(qkv, o.num_heads)
        rows = _rows(a)
        u = F.linear(rows, w.w1, w.low_b1)

        how = (o.factor, False, False, given)  # the factor is of the adapter's hidden state
        g, branch, sums = arrive((g, dy), found, o.dtype, needs.b2, *how)[:3]
        du, hidden, biases = gelu_gradients(w, branch @ w.w2, u, sums, o.factor)
        gradients = adapter_gradients(w, needs, rows, du, hidden, branch, biases)
        if not (needs_x or any(needs_in)):
            return None, None, None, *gradients, *NOT_FORMED

        da = (du @ w.w1).view(a.shape)
        del branch, du, u, hidden
        dqkv = ops.temporal_attention_backward(da, qkv, a, lse, o.num_heads)
        del da, qkv, a, lse, rows  # what is formed again is held by nobody else
        dz = input_gradient(_rows(dqkv), o.attention.qkv_weight, o.scaled.qkv, o.dtype)
        del dqkv
        gradients_in: Any = NOT_FORMED
        if o.adapter_in is not None:
            if z is None:
                z = _norm(o, o.norm, False).rows
            w = o.adapter_in
            du_in, hidden, biases = gelu_gradients(w, dz @ w.w2, u_in, dz if needs_in.b2 else None)
            gradients_in = adapter_gradients(w, needs_in, z, du_in, hidden, dz, biases)
            dz.addmm_(du_in, w.w1)
        of_input = depart(given, dz, o.x, o.norm.weight, mean, rstd, g) if needs_x else (None, None)
        return None, *of_input, *gradients, *gradients_in


def _norm(o: _Operands, norm: NormWeights, recorded: bool) -> Normed:
    scaled = o.scaled.qkv is not None and o.adapter_in is None  # which reads y itself
    return norm_before(o.x, norm, o.eps, o.dtype, recorded, scaled, not scaled, o.unit)


def _project(rows: Tensor | ScaledRows, o: _Operands) -> tuple[Tensor | None, Tensor]:
    """The second adapter's hidden state before its activation, and qkv [B, T, N, 3D]."""
    u_in = None
    if o.adapter_in is not None and not isinstance(rows, ScaledRows):
        w = o.adapter_in
        u_in = F.linear(rows, w.w1, w.low_b1)
        rows = rows + F.linear(gelu(u_in), w.w2, w.low_b2)
    qkv = product(rows, o.attention.qkv_weight, o.attention.qkv_bias, o.scaled.qkv, o.dtype)
    return u_in, qkv.view(*o.x.shape[:-1], -1)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
