"""The joint sub-block as one differentiable function: the adapter widens the frozen MLP.

    x' = x + [Wproj | s·W2] · [act(Wfc y + bfc) ; f·gelu(W1 y + b1)] + bproj + f·s·b2,   y = ln_2(x)

One MLP of M + H hidden units with two activations, two products forward and two backward; f is droppath's factor, s the
adapter's scale; of a gated MLP see :mod:`aim_kernels.widened_mlp`. Shapes as in :mod:`aim_kernels.adaptation`. Kept for
backward, in vectors of width D per token in the products' dtype: ``fast`` x and the slopes of the MLP's activation, a
byte each (2); ``balanced`` and ``lean`` x alone. In float32 and float64, and of a gated MLP, ``fast`` keeps the hidden
state before its activations instead of slopes (4 + 1/4; gated, with M = 8/3 D, 5 1/3 + 1/4).
Where the hidden state is formed again it is in chunks of rows, forward and backward: :mod:`aim_kernels.chunked_mlp`.
The stacked weights are formed when they are needed and never kept, unless they are given.
Derivation: kernels/README.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_kernels.adaptation import joint_adaptation_reference
from aim_kernels.choices import Memory, MLPActivation
from aim_kernels.chunked_mlp import branch_in_chunks, gradients_in_chunks
from aim_kernels.formed_adapter import formed_of, plain
from aim_kernels.memory import check_memory, copied_for_backward, running_again
from aim_kernels.precision import compute_dtype
from aim_kernels.registration import ops
from aim_kernels.residual import row_factor
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
    rows_of,
)
from aim_kernels.trained_trunk import mlp_branch
from aim_kernels.weights import (
    NOT_FORMED,
    UNSCALED,
    AdapterNeeds,
    AdapterWeights,
    FormedAdapter,
    Keeping,
    MLPWeights,
    NormWeights,
    ScaledTrunk,
    StackedMLP,
    UnitNorm,
    apply,
    recorded,
    require_gradient,
)
from aim_kernels.widened_mlp import Hidden, WidenedMLP, activated, check_activation, contract, wide_gradients


def joint_adaptation(
    x: Tensor,
    norm: NormWeights,
    mlp: MLPWeights,
    adapter: AdapterWeights | FormedAdapter | None = None,
    drop: Tensor | None = None,
    scale: float = 1.0,
    activation: MLPActivation = "quick_gelu",
    eps: float = 1e-5,
    memory: Memory = "fast",
    stacked: StackedMLP | None = None,
    scaled: ScaledTrunk = UNSCALED,
    before: Ahead | None = None,
    ahead: Ahead | None = None,
) -> Tensor:
    """:func:`~aim_kernels.adaptation.joint_adaptation_reference`, fused: same arguments, same value to rounding.

    Products run in autocast's dtype, else in that of ``fc_weight``, those of the weights that are ``scaled`` in eight
    bits; the residual stream keeps the dtype of ``x``. ``before`` and ``ahead`` are the norms of ``x`` and of the
    output, where neighbours share them (:mod:`aim_kernels.shared_norms`).
    Differentiable in ``x`` and the adapter; where a trunk weight requires a gradient, in everything, through
    :mod:`aim_kernels.trained_trunk`. ``stacked`` are the weights of ``mlp`` and the adapter, where they are
    stacked already; beside weights that are ``scaled`` they are not read. Raises ValueError for an activation that is
    not that of ``mlp``.
    """
    check_memory(memory)
    check_activation(mlp, activation)
    if not x.numel():
        return joint_adaptation_reference(x, norm, mlp, plain(adapter), drop, scale, activation, eps)
    if require_gradient(norm, mlp):
        return x + mlp_branch(x, norm, mlp, plain(adapter), drop, scale, activation, eps, memory, scaled)
    dtype = compute_dtype(x, mlp.fc_weight)
    ready = formed_of(adapter, dtype, beside=mlp.proj_bias, scale=scale)
    normed, stacked = normed_of(x, before), stacked if scaled.fc is None else None
    constants = (activation, eps, memory, dtype, recorded((x,), ready), isinstance(norm, UnitNorm), scaled)
    operands = _Operands(x, normed, ahead, row_factor(drop, x), norm, mlp, ready, stacked, *constants)
    out = apply(_JointAdaptation, operands, x, normed and normed.y, *(ready or NOT_FORMED))
    return out if ahead is None else ahead.filled(out)


class _Operands(NamedTuple):
    x: Tensor
    normed: Normed | None
    ahead: Ahead | None
    factor: Tensor | None  # [rows] droppath's
    norm: NormWeights
    mlp: MLPWeights
    adapter: FormedAdapter | None
    stacked: StackedMLP | None
    activation: MLPActivation
    eps: float
    memory: Memory
    dtype: torch.dtype
    recorded: bool
    unit: bool  # whether the norm is a UnitNorm
    scaled: Any  # ScaledTrunk, which is no tensor of autograd's


_KEEPING = Keeping(_Operands, given=2)


class _JointAdaptation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: _Operands, *_: Tensor | None) -> Any:
        in_one = o.scaled.fc is not None and o.memory == "fast"  # the norm writes what the product reads
        normed = o.normed or norm_before(
            o.x, o.norm, o.eps, o.dtype, o.recorded, in_one, not in_one or o.adapter is not None, o.unit
        )
        mean, rstd, kept_x, ahead = normed.mean, normed.rstd, normed.kept_of(o.x), o.ahead
        if o.memory == "lean" and running_again():  # the last of its block: nobody reads what comes out
            _KEEPING.keep(ctx, kept_x, o, *left(None, None), mean, rstd, *Hidden())
            return o.x.new_empty(()).expand(o.x.shape)
        wide = _widened(o, o.adapter)
        kept, rows = Hidden(), rows_of(normed.y)
        if o.memory == "fast":
            hidden, kept = activated(wide, normed.rows, True)
            branch, dropped_bias = contract(wide, hidden, rows)
            del hidden, rows, normed  # the largest tensors of a forward
        else:
            branch, dropped_bias = branch_in_chunks(wide, rows)
        factor = None if dropped_bias is None else wide.factor
        out = add_and_norm(o.x, branch, factor, dropped_bias, ahead, o.dtype)
        _KEEPING.keep(ctx, kept_x, o, *left(out, ahead), mean, rstd, *kept)
        constants_of(ctx, out)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor, dy_ahead: Tensor | None = None, *_: None) -> tuple[Any, ...]:
        o, *found, mean, rstd, u, slope = _KEEPING.kept(ctx)
        _, needs_x, given, *flags = ctx.needs_input_grad
        needs, norm = AdapterNeeds(*flags), copied_for_backward(o.norm, g)
        wide = _widened(o, copied_for_backward(o.adapter, g))
        how = (wide.factor, False, wide.scaled.proj is not None, given)
        g, branch, sums, eight = arrive((g, dy_ahead), found, o.dtype, needs.b2, *how)
        y, kept = None, Hidden(u, slope)
        kept_own = u is not None and wide.beside is None
        if (not kept_own and (slope is None or o.adapter is not None)) or needs.w1:
            normal = o.x if o.unit else ops.layer_norm(o.x, *norm, o.eps, o.dtype)[0]
            y = normal.reshape(-1, normal.shape[-1])
        if y is None or o.memory == "fast":
            last = [(branch, eight)]
            del branch, eight  # handed over: they are held no longer than they are read
            dy, gradients = wide_gradients(wide, *last.pop(), sums, y, kept, needs_x, needs)
        else:
            dy, gradients = gradients_in_chunks(wide, branch, sums, y, needs_x, needs)
        of_input = (None, None) if dy is None else depart(given, dy, o.x, norm.weight, mean, rstd, g)
        return None, *of_input, *gradients


def _widened(o: _Operands, adapter: FormedAdapter | None) -> WidenedMLP:
    factor = None if adapter is None else o.factor
    return WidenedMLP(o.mlp, adapter, factor, o.activation, o.dtype, o.stacked, o.scaled)
