"""The joint sub-block as one differentiable function: the adapter widens the frozen MLP.

    x' = x + [Wproj | s·W2] · [act(Wfc y + bfc) ; f·gelu(W1 y + b1)] + bproj + f·s·b2,   y = ln_2(x)

One MLP of M + H hidden units with two activations, two products forward and two backward; f is droppath's factor, s the
adapter's scale. Shapes as in :mod:`aim_kernels.adaptation`. Kept for backward, in vectors of width D per token in the
products' dtype: ``fast`` x and the slopes of the MLP's activation, a byte each (2); ``balanced`` and ``lean`` x alone.
In float32 and float64 ``fast`` keeps the hidden state before its activations (4 + 1/4) instead of slopes.
The stacked weights are formed when they are needed and never kept. Derivation: kernels/README.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_kernels import layer_norm  # noqa: F401  (registers the operator)
from aim_kernels.adaptation import AdapterWeights, joint_adaptation_reference
from aim_kernels.choices import Activation, Memory
from aim_kernels.composed import Needs, check_memory, compute_dtype, narrowed, row_factor
from aim_kernels.recomputation import again
from aim_kernels.residual import residual_add
from aim_kernels.trained_trunk import mlp_branch
from aim_kernels.widened_mlp import Hidden, activated, contract, expand, wide_gradients


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
    Differentiable in ``x`` and the adapter; where a trunk weight requires a gradient, in everything, through
    :mod:`aim_kernels.trained_trunk`.
    """
    check_memory(memory)
    trunk = (ln_weight, ln_bias, fc_weight, fc_bias, proj_weight, proj_bias)
    if not x.numel():
        return joint_adaptation_reference(x, *trunk, adapter, drop, scale, activation, eps)
    if any(weight.requires_grad for weight in trunk):
        return x + mlp_branch(x, *trunk, adapter, drop, scale, activation, eps, memory)
    dtype = compute_dtype(x, fc_weight)
    weights = (None,) * 4 if adapter is None else adapter
    quick = activation == "quick_gelu"
    return _JointAdaptation.apply(x, drop, *weights, *trunk, scale, quick, eps, memory, dtype)


class _JointAdaptation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, drop: Tensor | None, *args: Any) -> Tensor:
        adapter, trunk, (scale, quick, eps, memory, dtype) = _unpack(args)
        y, mean, rstd = torch.ops.aim.layer_norm(x, trunk[0], trunk[1], eps, dtype)
        factor = row_factor(drop, x) if adapter is not None else None
        u = expand(y.view(-1, y.shape[-1]), adapter, trunk[2:], dtype)
        hidden, kept = activated(u, trunk[2].shape[0], factor, quick, memory == "fast")
        branch, dropped_bias = contract(hidden, adapter, trunk[2:], factor, scale, dtype)
        out = residual_add(x, branch, None if dropped_bias is None else factor, dropped_bias)
        ctx.save_for_backward(narrowed(x, dtype), mean, rstd, drop, *kept, *args[:10])
        ctx.constants = args[10:]
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, drop, u, slope, *weights = ctx.saved_tensors
        weights = again(weights, 5, g)
        adapter, trunk, (scale, quick, eps, memory, dtype) = _unpack((*weights, *ctx.constants))
        needs_x, needs = ctx.needs_input_grad[0], Needs(*ctx.needs_input_grad[2:6])
        factor = row_factor(drop, x) if adapter is not None else None
        branch, y = g.to(dtype).reshape(-1, g.shape[-1]), None
        kept = Hidden(u, slope)
        if (u is None and (slope is None or adapter is not None)) or needs.w1:
            normal, _, _ = torch.ops.aim.layer_norm(x, trunk[0], trunk[1], eps, dtype)
            y = normal.view(branch.shape)
            kept = kept if memory == "fast" else Hidden(expand(y, adapter, trunk[2:], dtype))
        dy, gradients = wide_gradients(branch, y, kept, adapter, trunk[2:], factor, scale, quick, needs_x, needs)
        dx = None
        if dy is not None:
            dx = torch.ops.aim.layer_norm_backward(dy.view(x.shape), x, trunk[0], mean, rstd, g)
        return (dx, None, *gradients, *(None,) * (len(ctx.needs_input_grad) - 6))


def _unpack(args: tuple[Any, ...]) -> tuple[AdapterWeights | None, tuple[Any, ...], tuple[Any, ...]]:
    return None if args[0] is None else AdapterWeights(*args[:4]), args[4:10], args[10:]
