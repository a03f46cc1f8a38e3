"""The temporal sub-block as one differentiable function with the adapter swallowing the output projection.

    x' = x + f · (W2·gelu(W' a + b') + b2),   a = temporal attention of Wqkv z + bqkv,   W' = W1 Wo,  b' = W1 bo + b1
    z = ln_1(x), or z = s + A_in(s) with s = ln_1(x) when there is a second adapter

Shapes as in :mod:`aim_kernels.adaptation`. The D × D output projection is never applied to a token. Kept for backward,
in vectors of width D per token in the products' dtype: ``fast`` x, qkv (3), a, the second adapter's hidden state (1/4);
``balanced`` and ``lean`` x, and all else again from x. Derivation: kernels/README.md. Source: AIM (ICLR 2023).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import layer_norm, temporal_attention, wide_activation  # noqa: F401  (register the operators)
from aim_kernels.adaptation import AdapterWeights, temporal_adaptation_reference
from aim_kernels.adapter import adapter as bottleneck
from aim_kernels.choices import Memory
from aim_kernels.composed import (
    Needs,
    adapter_gradients,
    check_memory,
    compose,
    compute_dtype,
    decompose,
    narrowed,
    row_factor,
    to_dtype,
)
from aim_kernels.recomputation import again
from aim_kernels.residual import column_sum, residual_add
from aim_kernels.trained_trunk import attention_branch


def temporal_adaptation(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
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
    trunk = (ln_weight, ln_bias, qkv_weight, qkv_bias, out_weight, out_bias)
    if not x.numel():
        return temporal_adaptation_reference(x, *trunk, num_heads, adapter, adapter_in, drop, eps)
    if any(weight.requires_grad for weight in trunk):
        attended = attention_branch(x, *trunk, num_heads, "time", adapter_in, eps)
        return bottleneck(attended, adapter, residual=x, factor=drop)
    dtype = compute_dtype(x, qkv_weight)
    second = (None,) * 4 if adapter_in is None else adapter_in
    return _TemporalAdaptation.apply(x, drop, *adapter, *second, *trunk, num_heads, eps, memory, dtype)


class _TemporalAdaptation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, drop: Tensor | None, *args: Any) -> Tensor:
        adapter, second, trunk, (num_heads, eps, memory, dtype) = _unpack(args)
        z, mean, rstd = torch.ops.aim.layer_norm(x, trunk[0], trunk[1], eps, dtype)
        u_in, qkv = _project(z, second, trunk, dtype)
        a, lse = torch.ops.aim.temporal_attention(qkv, num_heads)
        low = to_dtype(adapter, dtype)
        u = F.linear(_rows(a), *compose(adapter, trunk[4].to(dtype), trunk[5], dtype))
        hidden = torch.ops.aim.wide_activation(u, 0, False, None)
        out = residual_add(x, F.linear(hidden, low.w2, low.b2), row_factor(drop, x))
        kept: tuple[Tensor | None, ...] = (None,) * 4
        if memory == "fast":
            kept = (qkv, a, lse, u_in)
        ctx.save_for_backward(narrowed(x, dtype), mean, rstd, drop, *kept, *args[:14])
        ctx.constants = args[14:]
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, drop, qkv, a, lse, u_in, *weights = ctx.saved_tensors
        weights = again(weights, 9, g)
        adapter, second, trunk, (num_heads, eps, _, dtype) = _unpack((*weights, *ctx.constants))
        needs_x, needs = ctx.needs_input_grad[0], Needs(*ctx.needs_input_grad[2:6])
        needs_in = Needs(*ctx.needs_input_grad[6:10])
        low = to_dtype(adapter, dtype)
        out_weight, out_bias = trunk[4].to(dtype), trunk[5]
        composed, bias = compose(adapter, out_weight, out_bias, dtype)
        z = None
        if qkv is None:
            z, _, _ = torch.ops.aim.layer_norm(x, trunk[0], trunk[1], eps, dtype)
            u_in, qkv = _project(z, second, trunk, dtype)
        if a is None:
            a, lse = torch.ops.aim.temporal_attention(qkv, num_heads)
        u = F.linear(_rows(a), composed, bias)

        branch = _rows((g if drop is None else g * drop.to(g.dtype)).to(dtype))
        du = torch.ops.aim.wide_activation_backward(branch @ low.w2, u, 0, False, None)
        dw1 = db1 = dw2 = db2 = None
        if needs.w2:
            dw2 = (branch.t() @ torch.ops.aim.wide_activation(u, 0, False, None)).to(adapter.w2.dtype)
        if needs.b2:
            db2 = column_sum(branch, adapter.b2.dtype)
        if needs.b1 or needs.w1:
            db1 = column_sum(du, adapter.b1.dtype)
            dw1 = decompose(du.t() @ _rows(a), db1, out_weight, out_bias, adapter.w1.dtype) if needs.w1 else None
        gradients = (dw1, db1, dw2, db2)
        if not (needs_x or any(needs_in)):
            return (None, None, *gradients, *(None,) * (len(ctx.needs_input_grad) - 6))

        da = (du @ composed).view(a.shape)
        dqkv = torch.ops.aim.temporal_attention_backward(da, qkv, a, lse, num_heads)
        dz = _rows(dqkv) @ trunk[2].to(dtype)
        gradients_in: tuple[Tensor | None, ...] = (None,) * 4
        if second is not None:
            if z is None:
                z, _, _ = torch.ops.aim.layer_norm(x, trunk[0], trunk[1], eps, dtype)
            low_in = to_dtype(second, dtype)
            du_in = torch.ops.aim.wide_activation_backward(dz @ low_in.w2, u_in, 0, False, None)
            hidden_in = torch.ops.aim.wide_activation(u_in, 0, False, None)
            gradients_in = adapter_gradients(second, needs_in, _rows(z), du_in, hidden_in, dz)
            dz = torch.addmm(dz, du_in, low_in.w1)
        dx = None
        if needs_x:
            dx = torch.ops.aim.layer_norm_backward(dz.view(x.shape), x, trunk[0], mean, rstd, g)
        return (dx, None, *gradients, *gradients_in, *(None,) * (len(ctx.needs_input_grad) - 10))


def _unpack(args: tuple[Any, ...]) -> tuple[AdapterWeights, AdapterWeights | None, tuple[Tensor, ...], tuple[Any, ...]]:
    second = None if args[4] is None else AdapterWeights(*args[4:8])
    return AdapterWeights(*args[:4]), second, args[8:14], args[14:]


def _project(
    z: Tensor, second: AdapterWeights | None, trunk: tuple[Tensor, ...], dtype: torch.dtype
) -> tuple[Tensor | None, Tensor]:
    """The second adapter's hidden state before its activation, and qkv [B, T, N, 3D]."""
    u_in, rows = None, _rows(z)
    if second is not None:
        low = to_dtype(second, dtype)
        u_in = F.linear(rows, low.w1, low.b1)
        rows = rows + F.linear(torch.ops.aim.wide_activation(u_in, 0, False, None), low.w2, low.b2)
    qkv = F.linear(rows, trunk[2].to(dtype), trunk[3].to(dtype))
    return u_in, qkv.view(*z.shape[:-1], -1)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
