"""The joint sub-block as one differentiable function: the adapter widens the frozen MLP.

    x' = x + [Wproj | s·W2] · [act(Wfc y + bfc) ; f·gelu(W1 y + b1)] + bproj + f·s·b2,   y = ln_2(x)

One MLP of M + H hidden units with two activations, two products forward and two backward; f is droppath's factor, s the
adapter's scale. Shapes as in :mod:`aim_kernels.adaptation`. Kept for backward, in vectors of width D per token in the
products' dtype: ``fast`` x and the hidden state before its activations (4 + 1/4); ``balanced`` and ``lean`` x alone.
The stacked weights are formed when they are needed and never kept. Derivation: kernels/README.md.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import layer_norm, wide_activation  # noqa: F401  (register the operators)
from aim_kernels.adaptation import Activation, AdapterWeights, joint_adaptation_reference
from aim_kernels.composed import Memory, Needs, check_memory, compute_dtype, narrowed, row_factor, to_dtype
from aim_kernels.residual import column_sum, residual_add


def joint_adaptation(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    adapter: AdapterWeights | None = None,
    drop: Tensor | None = None,
    scale: float = 1.0,
    activation: Activation = "quick_gelu",
    eps: float = 1e-5,
    memory: Memory = "fast",
) -> Tensor:
    """:func:`~aim_kernels.adaptation.joint_adaptation_reference`, fused: same arguments, same value to rounding.

    Products run in autocast's dtype, else in that of ``fc_weight``; the residual stream keeps the dtype of ``x``.
    Differentiable in ``x`` and the adapter; when a trunk weight requires a gradient the reference runs instead.
    """
    check_memory(memory)
    trunk = (ln_weight, ln_bias, fc_weight, fc_bias, proj_weight, proj_bias)
    if any(weight.requires_grad for weight in trunk) or not x.numel():
        return joint_adaptation_reference(x, *trunk, adapter, drop, scale, activation, eps)
    dtype = compute_dtype(x, fc_weight)
    weights = (None,) * 4 if adapter is None else adapter
    quick = activation == "quick_gelu"
    return _JointAdaptation.apply(x, drop, *weights, *trunk, scale, quick, eps, memory, dtype)


class _JointAdaptation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, drop: Tensor | None, *args: Any) -> Tensor:
        adapter, trunk, (scale, quick, eps, memory, dtype) = _unpack(args)
        y, mean, rstd = torch.ops.aim.layer_norm(x, trunk[0], trunk[1], eps, dtype)
        u = _expand(y, adapter, trunk, dtype)
        split = trunk[2].shape[0]
        factor = row_factor(drop, x) if adapter is not None else None
        hidden = torch.ops.aim.wide_activation(u, split, quick, factor)
        bias = trunk[5].to(dtype)
        if adapter is not None and drop is None:
            bias = bias + scale * adapter.b2.to(dtype)
        branch = F.linear(hidden, _narrowing(adapter, trunk, scale, dtype), bias)
        dropped_bias = None if adapter is None or drop is None else scale * adapter.b2
        out = residual_add(x, branch, None if dropped_bias is None else factor, dropped_bias)
        ctx.save_for_backward(narrowed(x, dtype), mean, rstd, drop, u if memory == "fast" else None, *args[:10])
        ctx.constants = args[10:]
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, drop, u, *weights = ctx.saved_tensors
        adapter, trunk, (scale, quick, eps, _, dtype) = _unpack((*weights, *ctx.constants))
        needs_x, needs = ctx.needs_input_grad[0], Needs(*ctx.needs_input_grad[2:6])
        split = trunk[2].shape[0]
        factor = row_factor(drop, x) if adapter is not None else None
        if u is None or needs.w1:
            y, _, _ = torch.ops.aim.layer_norm(x, trunk[0], trunk[1], eps, dtype)
            u = _expand(y, adapter, trunk, dtype) if u is None else u
        branch = g.to(dtype).reshape(-1, g.shape[-1])
        gradients: list[Tensor | None] = [None] * 4
        du = None
        if needs_x or needs.w1 or needs.b1:
            dhidden = branch @ _narrowing(adapter, trunk, scale, dtype)
            du = torch.ops.aim.wide_activation_backward(dhidden, u, split, quick, factor)
        if adapter is not None and any(needs):
            if needs.w2:
                own = torch.ops.aim.wide_activation(u[:, split:].contiguous(), 0, False, factor)
                gradients[2] = (branch.t() @ own).to(adapter.w2.dtype) * scale
            if needs.b2:
                dropped = branch if factor is None else branch * factor[:, None].to(dtype)
                gradients[3] = column_sum(dropped, adapter.b2.dtype) * scale
            if needs.b1 and du is not None:
                gradients[1] = column_sum(du[:, split:], adapter.b1.dtype)
            if needs.w1 and du is not None:
                gradients[0] = (du[:, split:].t() @ y.view(branch.shape)).to(adapter.w1.dtype)
        dx = None
        if needs_x and du is not None:
            dy = (du @ _widening(adapter, trunk, dtype)).view(x.shape)
            dx = torch.ops.aim.layer_norm_backward(dy, x, trunk[0], mean, rstd, g)
        return (dx, None, *gradients, *(None,) * (len(ctx.needs_input_grad) - 6))


def _unpack(args: tuple[Any, ...]) -> tuple[AdapterWeights | None, tuple[Tensor, ...], tuple[Any, ...]]:
    return None if args[0] is None else AdapterWeights(*args[:4]), args[4:10], args[10:]


def _widening(adapter: AdapterWeights | None, trunk: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """[Wfc ; W1], [M + H, D]."""
    weight = trunk[2].to(dtype)
    return weight if adapter is None else torch.cat([weight, adapter.w1.to(dtype)])


def _narrowing(adapter: AdapterWeights | None, trunk: tuple[Tensor, ...], scale: float, dtype: torch.dtype) -> Tensor:
    """[Wproj | s·W2], [D, M + H]."""
    weight = trunk[4].to(dtype)
    return weight if adapter is None else torch.cat([weight, (scale * adapter.w2).to(dtype)], 1)


def _expand(y: Tensor, adapter: AdapterWeights | None, trunk: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """The widened hidden state before its activations, [B·T·N, M + H]."""
    bias = trunk[3].to(dtype)
    if adapter is not None:
        bias = torch.cat([bias, to_dtype(adapter, dtype).b1])
    return F.linear(y.view(-1, y.shape[-1]), _widening(adapter, trunk, dtype), bias)
