"""The spatial sub-block as one differentiable function with the adapter riding on the output projection.

    x' = x + Wo a + W2·gelu(W' a + b') + (bo + b2),   a = spatial attention of Wqkv ln_1(x) + bqkv
    W' = W1 Wo,  b' = W1 bo + b1;  backward: da = Woᵀ g + W'ᵀ du, one accumulated product

Shapes as in :mod:`aim_kernels.adaptation`. Kept for backward, in vectors of width D per token in the products' dtype:
``fast`` x, qkv (3), a, the adapter's hidden state formed again; ``balanced`` x and qkv, the attention run again;
``lean`` x alone. Derivation: kernels/README.md.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import layer_norm, wide_activation  # noqa: F401  (register the operators)
from aim_kernels.adaptation import AdapterWeights, spatial_adaptation_reference
from aim_kernels.adapter import adapter as bottleneck
from aim_kernels.choices import Memory
from aim_kernels.composed import Needs, check_memory, compose, compute_dtype, decompose, narrowed, to_dtype
from aim_kernels.recomputation import again
from aim_kernels.residual import column_sum, residual_add
from aim_kernels.spatial_attention import Backend, backend_missing
from aim_kernels.trained_trunk import attention_branch


def spatial_adaptation(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    num_heads: int,
    adapter: AdapterWeights | None = None,
    eps: float = 1e-5,
    memory: Memory = "fast",
    attention_backend: Backend = "auto",
) -> Tensor:
    """:func:`~aim_kernels.adaptation.spatial_adaptation_reference`, fused: same arguments, same value to rounding.

    Products run in autocast's dtype, else in that of ``qkv_weight``; the residual stream keeps the dtype of ``x``.
    Differentiable in ``x`` and the adapter; where a trunk weight requires a gradient, in everything, through
    :mod:`aim_kernels.trained_trunk`.
    Raises ValueError for an ``attention_backend`` that cannot serve ``x``.
    """
    check_memory(memory)
    missing = backend_missing(attention_backend, x.device)
    if missing:
        raise ValueError(missing)
    trunk = (ln_weight, ln_bias, qkv_weight, qkv_bias, out_weight, out_bias)
    if not x.numel():
        return spatial_adaptation_reference(x, *trunk, num_heads, adapter, eps)
    if any(weight.requires_grad for weight in trunk):
        attended = attention_branch(x, *trunk, num_heads, "space", None, eps, attention_backend)
        return x + attended if adapter is None else bottleneck(attended, adapter, skip=True, residual=x)
    dtype = compute_dtype(x, qkv_weight)
    weights = (None,) * 4 if adapter is None else adapter
    return _SpatialAdaptation.apply(x, *weights, *trunk, num_heads, eps, memory, attention_backend, dtype)


class _SpatialAdaptation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        adapter, trunk, (num_heads, eps, memory, backend, dtype) = _unpack(args)
        z, mean, rstd = torch.ops.aim.layer_norm(x, trunk[0], trunk[1], eps, dtype)
        qkv = F.linear(z, trunk[2].to(dtype), trunk[3].to(dtype))
        a, lse = torch.ops.aim.spatial_attention(qkv, num_heads, backend)
        branch = project(a.view(-1, a.shape[-1]), adapter, trunk, dtype)
        kept: tuple[Tensor | None, ...] = (None,) * 3
        if memory == "fast":
            kept = (qkv, a, lse)
        elif memory == "balanced":
            kept = (qkv, None, None)
        ctx.save_for_backward(narrowed(x, dtype), mean, rstd, *kept, *args[:10])
        ctx.constants = args[10:]
        return residual_add(x, branch)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, qkv, a, lse, *weights = ctx.saved_tensors
        weights = again(weights, 5, g)
        adapter, trunk, (num_heads, eps, _, backend, dtype) = _unpack((*weights, *ctx.constants))
        needs_x, needs = ctx.needs_input_grad[0], Needs(*ctx.needs_input_grad[1:5])
        if qkv is None:
            z, _, _ = torch.ops.aim.layer_norm(x, trunk[0], trunk[1], eps, dtype)
            qkv = F.linear(z, trunk[2].to(dtype), trunk[3].to(dtype))
        if a is None:
            a, lse = torch.ops.aim.spatial_attention_again(qkv, num_heads, backend, g)
        rows, branch = a.view(-1, a.shape[-1]), g.to(dtype).reshape(-1, g.shape[-1])
        da, gradients = project_backward(branch, rows, adapter, trunk, needs_x, needs)
        dx = None
        if da is not None:
            dqkv = torch.ops.aim.spatial_attention_backward(da.view(a.shape), qkv, a, lse, num_heads, backend)
            dz = (dqkv.view(-1, dqkv.shape[-1]) @ trunk[2].to(dtype)).view(x.shape)
            dx = torch.ops.aim.layer_norm_backward(dz, x, trunk[0], mean, rstd, g)
        return (dx, *gradients, *(None,) * (len(ctx.needs_input_grad) - 5))


def project(rows: Tensor, adapter: AdapterWeights | None, trunk: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """The branch [M, D] of attended ``rows`` [M, D]: the output projection with the adapter on it."""
    out_weight, out_bias = trunk[4].to(dtype), trunk[5].to(dtype)
    if adapter is None:
        return F.linear(rows, out_weight, out_bias)
    low = to_dtype(adapter, dtype)
    u = F.linear(rows, *compose(adapter, out_weight, trunk[5], dtype))
    hidden = torch.ops.aim.wide_activation(u, 0, False, None)
    return torch.addmm(F.linear(rows, out_weight, out_bias + low.b2), hidden, low.w2.t())


def project_backward(
    branch: Tensor,
    rows: Tensor,
    adapter: AdapterWeights | None,
    trunk: tuple[Tensor, ...],
    needs_rows: bool,
    needs: Needs,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of ``rows`` [M, D] and of the adapter's tensors from ``branch`` [M, D], that of the branch."""
    dtype = branch.dtype
    out_weight, out_bias = trunk[4].to(dtype), trunk[5]
    gradients: list[Tensor | None] = [None] * 4
    da = branch @ out_weight if needs_rows else None
    if adapter is None or not (needs_rows or any(needs)):
        return da, gradients
    low = to_dtype(adapter, dtype)
    composed, bias = compose(adapter, out_weight, out_bias, dtype)
    u = F.linear(rows, composed, bias)
    du = torch.ops.aim.wide_activation_backward(branch @ low.w2, u, 0, False, None)
    if needs.w2:
        gradients[2] = (branch.t() @ torch.ops.aim.wide_activation(u, 0, False, None)).to(adapter.w2.dtype)
    if needs.b2:
        gradients[3] = column_sum(branch, adapter.b2.dtype)
    if needs.w1 or needs.b1:
        d_bias = gradients[1] = column_sum(du, adapter.b1.dtype)
        if needs.w1:
            gradients[0] = decompose(du.t() @ rows, d_bias, out_weight, out_bias, adapter.w1.dtype)
    return (None if da is None else torch.addmm(da, du, composed)), gradients


def _unpack(args: tuple[Any, ...]) -> tuple[AdapterWeights | None, tuple[Tensor, ...], tuple[Any, ...]]:
    return None if args[0] is None else AdapterWeights(*args[:4]), args[4:10], args[10:]
