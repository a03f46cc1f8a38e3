"""The joint sub-block as one differentiable function: the adapter widens the frozen MLP.

    x' = x + [Wproj | s·W2] · [act(Wfc y + bfc) ; f·gelu(W1 y + b1)] + bproj + f·s·b2,   y = ln_2(x)

One MLP of M + H hidden units with two activations, two products forward and two backward; f is droppath's factor, s the
adapter's scale; of a gated MLP see :mod:`aim_kernels.widened_mlp`. Shapes as in :mod:`aim_kernels.adaptation`. Kept for
backward, in vectors of width D per token in the products' dtype: ``fast`` x and the slopes of the MLP's activation, a
byte each (2); ``balanced`` and ``lean`` x alone. In float32 and float64, and of a gated MLP, ``fast`` keeps the hidden
state before its activations instead of slopes (4 + 1/4; gated, with M = 8/3 D, 5 1/3 + 1/4).
Where the hidden state is formed again it is in chunks of rows, forward and backward: :mod:`aim_kernels.chunked_mlp`.
The stacked weights are formed when they are needed and never kept. Derivation: kernels/README.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_kernels.adaptation import joint_adaptation_reference
from aim_kernels.choices import Memory, MLPActivation
from aim_kernels.chunked_mlp import branch_in_chunks, gradients_in_chunks
from aim_kernels.column_sum import branch_gradient
from aim_kernels.layer_norm import layer_norm_to_keep
from aim_kernels.memory import check_memory, copied_for_backward, running_again
from aim_kernels.precision import cast, compute_dtype
from aim_kernels.residual import residual_add, row_factor
from aim_kernels.trained_trunk import mlp_branch
from aim_kernels.weights import AdapterWeights, MLPWeights, NormWeights, Packing, recorded, require_gradient
from aim_kernels.widened_mlp import Hidden, WidenedMLP, activated, check_activation, contract, expand, wide_gradients


def joint_adaptation(
    x: Tensor,
    norm: NormWeights,
    mlp: MLPWeights,
    adapter: AdapterWeights | None = None,
    drop: Tensor | None = None,
    scale: float = 1.0,
    activation: MLPActivation = "quick_gelu",
    eps: float = 1e-5,
    memory: Memory = "fast",
) -> Tensor:
    """:func:`~aim_kernels.adaptation.joint_adaptation_reference`, fused: same arguments, same value to rounding.

    Products run in autocast's dtype, else in that of ``fc_weight``; the residual stream keeps the dtype of ``x``.
    Differentiable in ``x`` and the adapter; where a trunk weight requires a gradient, in everything, through
    :mod:`aim_kernels.trained_trunk`. Raises ValueError for an activation that is not that of ``mlp``.
    """
    check_memory(memory)
    check_activation(mlp, activation)
    if not x.numel():
        return joint_adaptation_reference(x, norm, mlp, adapter, drop, scale, activation, eps)
    if require_gradient(norm, mlp):
        return x + mlp_branch(x, norm, mlp, adapter, drop, scale, activation, eps, memory)
    constants = (scale, activation, eps, memory, compute_dtype(x, mlp.fc_weight), recorded((x,), adapter))
    operands = _Operands(x, drop, norm, mlp, adapter, *constants)
    return _JointAdaptation.apply(*_PACKING.pack(operands))


class _Operands(NamedTuple):
    x: Tensor
    drop: Tensor | None
    norm: NormWeights
    mlp: MLPWeights
    adapter: AdapterWeights | None
    scale: float
    activation: MLPActivation
    eps: float
    memory: Memory
    dtype: torch.dtype
    recorded: bool


_PACKING = Packing(_Operands)


class _JointAdaptation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *row: Any) -> Tensor:
        o = _PACKING.unpack(row)
        y, mean, rstd, x = layer_norm_to_keep(o.x, o.norm, o.eps, o.dtype, o.dtype, o.recorded)
        if o.memory == "lean" and running_again():  # the last of its block: nobody reads what comes out
            _PACKING.keep(ctx, o._replace(x=x), mean, rstd, *Hidden())
            return o.x.new_empty(()).expand(o.x.shape)
        wide = _widened(o, o.adapter)
        rows, kept = y.view(-1, y.shape[-1]), Hidden()
        if o.memory == "fast":
            hidden, kept = activated(wide, expand(wide, rows), True)
            branch, dropped_bias = contract(wide, hidden)
            del y, rows, hidden  # the largest tensors of a forward
        else:
            branch, dropped_bias = branch_in_chunks(wide, rows)
        out = residual_add(o.x, branch, None if dropped_bias is None else wide.factor, dropped_bias)
        _PACKING.keep(ctx, o._replace(x=x), mean, rstd, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        o, mean, rstd, u, slope = _PACKING.kept(ctx)
        needs, norm = _PACKING.needs(ctx), copied_for_backward(o.norm, g)
        wide = _widened(o, copied_for_backward(o.adapter, g))
        branch, db2 = branch_gradient(g, o.dtype, needs.adapter.b2, wide.factor, dropped=False)
        y, kept = None, Hidden(u, slope)
        if (u is None and (slope is None or o.adapter is not None)) or needs.adapter.w1:
            normal, _, _ = torch.ops.aim.layer_norm(o.x, *norm, o.eps, o.dtype)
            y = normal.view(branch.shape)
        if y is None or o.memory == "fast":
            dy, gradients = wide_gradients(wide, branch, db2, y, kept, needs.x, needs.adapter)
        else:
            dy, gradients = gradients_in_chunks(wide, branch, db2, y, needs.x, needs.adapter)
        dx = None
        if dy is not None:
            dx = torch.ops.aim.layer_norm_backward(dy.view(o.x.shape), o.x, norm.weight, mean, rstd, g)
        return _PACKING.gradients(x=dx, adapter=gradients)


def _widened(o: _Operands, adapter: AdapterWeights | None) -> WidenedMLP:
    factor, low = (None, None) if adapter is None else (row_factor(o.drop, o.x), cast(adapter, o.dtype))
    return WidenedMLP(o.mlp, adapter, low, factor, o.scale, o.activation, o.dtype)
