"""The frozen MLP widened by an adapter: one MLP of M + H hidden units with two activations.

    out = [Wproj | s·W2] · [act(u_M) ; f·gelu(u_H)] + bproj + f·s·b2,   u = [Wfc ; W1] y + [bfc ; b1]
    gated, "swiglu":       [silu(u_G)∘u_M ; f·gelu(u_H)]                   u = [Wgate ; Wfc ; W1] y + [bgate ; bfc ; b1]

``y`` [..., D], Wfc [M, D], W1 [H, D], f droppath's factor of each row, s the adapter's scale. Two products forward, two
and the adapter's backward. Beside y, backward wants u, but of the frozen columns the slope at u alone, which in half
precision is kept in a byte (:mod:`aim_kernels.wide_slope`), the adapter's columns being formed again. In float32 and
float64, and of a gated MLP, whose slopes are two numbers a unit, u is kept whole, or it is formed again. The stacked
weights are formed when they are needed and never kept.
Derivation: kernels/README.md. Source: AIM (ICLR 2023).
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import wide_slope, wide_swiglu  # noqa: F401  (registers the operators)
from aim_kernels.adaptation import adapter_reference, mlp_reference
from aim_kernels.choices import MLPActivation
from aim_kernels.column_sum import branch_gradient, column_sum
from aim_kernels.memory import copied_for_backward
from aim_kernels.precision import cast, compute_dtype
from aim_kernels.residual import row_factor
from aim_kernels.weights import AdapterGradients, AdapterNeeds, AdapterWeights, MLPWeights, Packing, require_gradient
from aim_kernels.wide_activation import gelu


class WidenedMLP(NamedTuple):
    """The frozen MLP, the adapter that widens it, and how they are applied."""

    mlp: MLPWeights
    adapter: AdapterWeights | None
    low: AdapterWeights | None  # the adapter in the products' dtype
    factor: Tensor | None  # [rows] droppath's
    scale: float
    activation: MLPActivation
    dtype: torch.dtype


class Hidden(NamedTuple):
    """What is kept of the hidden state before its activations: all of it, the frozen columns' slopes, or nothing."""

    u: Tensor | None = None  # [rows, M + H], gated [rows, 2M + H]
    slope: Tensor | None = None  # [rows, M] uint8


def wide_mlp(
    y: Tensor,
    mlp: MLPWeights,
    adapter: AdapterWeights | None = None,
    drop: Tensor | None = None,
    scale: float = 1.0,
    activation: MLPActivation = "quick_gelu",
    keep_hidden: bool = True,
) -> Tensor:
    """``mlp(y) + drop · scale · A(y)`` [..., D] in the products' dtype: autocast's, else that of ``fc_weight``.

    ``drop`` broadcasts to ``y`` with one factor a row, None for 1. ``keep_hidden`` keeps what backward wants of the
    hidden state, else it is formed again. Differentiable in ``y`` and the adapter; when a trunk weight requires a
    gradient the reference runs instead. Raises ValueError for shapes and activations that cannot be.
    """
    width, fc_weight, proj_weight = y.shape[-1], mlp.fc_weight, mlp.proj_weight
    if fc_weight.shape[1:] != (width,) or proj_weight.shape != fc_weight.shape[::-1]:
        shapes = f"{list(fc_weight.shape)} and {list(proj_weight.shape)}"
        raise ValueError(f"wide_mlp of {list(y.shape)} needs weights [M, {width}] and [{width}, M], got {shapes}")
    check_activation(mlp, activation)
    if require_gradient(mlp) or not y.numel():
        return wide_mlp_reference(y, mlp, adapter, drop, scale, activation)
    operands = _Operands(y, drop, mlp, adapter, scale, activation, keep_hidden, compute_dtype(y, fc_weight))
    return _WideMLP.apply(*_PACKING.pack(operands))


def check_activation(mlp: MLPWeights, activation: MLPActivation) -> None:
    """Raises ValueError for an activation that there is not, and for weights that are gated where it is not."""
    if activation not in get_args(MLPActivation):
        raise ValueError(f"activation {activation!r} is none of {', '.join(get_args(MLPActivation))}")
    fc, gate = mlp.fc_weight, mlp.gate_weight
    if (gate is not None) != (activation == "swiglu") or (gate is not None and gate.shape != fc.shape):
        shape = "no weight of gates" if gate is None else f"one of gates {list(gate.shape)}"
        raise ValueError(f"an MLP with {activation} of a first weight {list(fc.shape)} got {shape}")


def wide_mlp_reference(
    y: Tensor,
    mlp: MLPWeights,
    adapter: AdapterWeights | None = None,
    drop: Tensor | None = None,
    scale: float = 1.0,
    activation: MLPActivation = "quick_gelu",
) -> Tensor:
    """The MLP and the adapter apart, in plain torch."""
    out = mlp_reference(y, mlp, activation)
    if adapter is None:
        return out
    branch = adapter_reference(y, adapter) * scale
    return out + (branch if drop is None else branch * drop)


class _Operands(NamedTuple):
    y: Tensor
    drop: Tensor | None
    mlp: MLPWeights
    adapter: AdapterWeights | None
    scale: float
    activation: MLPActivation
    keep_hidden: bool
    dtype: torch.dtype


_PACKING = Packing(_Operands)


class _WideMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *row: Any) -> Tensor:
        o = _PACKING.unpack(row)
        rows = o.y.to(o.dtype).reshape(-1, o.y.shape[-1])
        wide = _widened(o, o.adapter, o.y)
        hidden, kept = activated(wide, expand(wide, rows), o.keep_hidden)
        out, dropped_bias = contract(wide, hidden)
        if wide.factor is not None and dropped_bias is not None:
            out.addcmul_(wide.factor[:, None].to(o.dtype), dropped_bias.to(o.dtype))
        _PACKING.keep(ctx, o._replace(y=rows), *kept)
        ctx.dtype_in = o.y.dtype
        return out.view(o.y.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        (o, u, slope), needs = _PACKING.kept(ctx), _PACKING.needs(ctx)
        wide = _widened(o, copied_for_backward(o.adapter, g), g)
        kept = Hidden(u, slope) if o.keep_hidden else Hidden(expand(wide, o.y))
        sides = branch_gradient(g, o.dtype, needs.adapter.b2, wide.factor, dropped=False)
        dy, gradients = wide_gradients(wide, *sides, o.y, kept, needs.y, needs.adapter)
        return _PACKING.gradients(y=None if dy is None else dy.view(g.shape).to(ctx.dtype_in), adapter=gradients)


def _widened(o: _Operands, adapter: AdapterWeights | None, x: Tensor) -> WidenedMLP:
    factor, low = (None, None) if adapter is None else (row_factor(o.drop, x), cast(adapter, o.dtype))
    return WidenedMLP(o.mlp, adapter, low, factor, o.scale, o.activation, o.dtype)


def expand(wide: WidenedMLP, y: Tensor) -> Tensor:
    """u [rows, M + H], gated [rows, 2M + H], of ``y`` [rows, D]."""
    bias = _stacked(wide, wide.mlp.gate_bias, wide.mlp.fc_bias, None if wide.low is None else wide.low.b1)
    return F.linear(y, _widening(wide), bias)


def activated(wide: WidenedMLP, u: Tensor, keep: bool) -> tuple[Tensor, Hidden]:
    """The hidden state after its activations [rows, M + H], and what ``keep`` asks to be kept of it."""
    split, kept = wide.mlp.fc_weight.shape[0], Hidden(u if keep else None)
    if wide.mlp.gate_weight is not None:
        return torch.ops.aim.wide_swiglu(u, split, wide.factor), kept
    if keep and u.dtype.itemsize == 2:
        hidden, slope = torch.ops.aim.wide_slope(u, split, wide.activation, wide.factor)
        return hidden, Hidden(slope=slope)
    return torch.ops.aim.wide_activation(u, split, wide.activation, wide.factor), kept


def contract(wide: WidenedMLP, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """The output [rows, D], and what it still lacks: s·b2 [D], to be multiplied by the factor; None without one."""
    bias, dropped_bias = wide.mlp.proj_bias.to(wide.dtype), None
    if wide.low is not None and wide.factor is None:
        bias = bias + wide.scale * wide.low.b2
    elif wide.adapter is not None:
        dropped_bias = wide.scale * wide.adapter.b2
    return F.linear(hidden, _narrowing(wide), bias), dropped_bias


def wide_gradients(
    wide: WidenedMLP,
    branch: Tensor,
    db2: Tensor | None,
    y: Tensor | None,
    kept: Hidden,
    needs_y: bool,
    needs: AdapterNeeds,
) -> tuple[Tensor | None, AdapterGradients]:
    """dy [rows, D] and the adapter's gradients from ``branch`` [rows, D], that of the output, in its dtype.

    ``db2`` [D] is the sum of its rows times droppath's factor, where b2 wants its gradient. ``y`` [rows, D] is read for
    the adapter's hidden state, where that is not kept, and for the gradient of W1.
    """
    adapter, factor, split = wide.adapter, wide.factor, wide.mlp.fc_weight.shape[0]
    first = split if wide.mlp.gate_weight is None else 2 * split  # of the adapter's columns in u
    own, du = None, None
    if kept.u is not None:
        own = kept.u[:, first:]
    elif wide.low is not None and y is not None:
        own = F.linear(y, wide.low.w1, wide.low.b1)
    if needs_y or needs.w1 or needs.b1:
        dhidden = branch @ _narrowing(wide)
        if wide.mlp.gate_weight is not None:
            du = torch.ops.aim.wide_swiglu_backward(dhidden, kept.u, split, factor)
        elif kept.slope is None:
            du = torch.ops.aim.wide_activation_backward(dhidden, kept.u, split, wide.activation, factor)
        else:
            columns = branch.new_empty(branch.shape[0], 0) if own is None else own
            du = torch.ops.aim.wide_slope_backward(dhidden, kept.slope, columns, factor)
        del dhidden
    dw1 = db1 = dw2 = None
    if adapter is not None:
        if needs.w2 and own is not None:
            dw2 = (branch.t() @ gelu(own.contiguous(), factor)).to(adapter.w2.dtype) * wide.scale
        if db2 is not None:
            db2 = db2.to(adapter.b2.dtype) * wide.scale
        if needs.b1 and du is not None:
            db1 = column_sum(du[:, first:], adapter.b1.dtype)
        if needs.w1 and du is not None and y is not None:
            dw1 = (du[:, first:].t() @ y).to(adapter.w1.dtype)
    dy = du @ _widening(wide) if needs_y and du is not None else None
    return dy, AdapterGradients(dw1, db1, dw2, db2)


def _widening(wide: WidenedMLP) -> Tensor:
    """[Wfc ; W1], [M + H, D], gated [Wgate ; Wfc ; W1], [2M + H, D]."""
    return _stacked(wide, wide.mlp.gate_weight, wide.mlp.fc_weight, None if wide.low is None else wide.low.w1)


def _stacked(wide: WidenedMLP, *parts: Tensor | None) -> Tensor:
    """Those that there are, in the products' dtype."""
    there = [part.to(wide.dtype) for part in parts if part is not None]
    return there[0] if len(there) == 1 else torch.cat(there)


def _narrowing(wide: WidenedMLP) -> Tensor:
    """[Wproj | s·W2], [D, M + H]."""
    weight = wide.mlp.proj_weight.to(wide.dtype)
    return weight if wide.adapter is None else torch.cat([weight, (wide.scale * wide.adapter.w2).to(wide.dtype)], 1)
