"""The frozen MLP widened by an adapter: one MLP of M + H hidden units with two activations.

    out = [Wproj | s·W2] · [act(u_M) ; f·gelu(u_H)] + bproj + f·s·b2,   u = [Wfc ; W1] y + [bfc ; b1]
    gated, "swiglu":       [silu(u_G)∘u_M ; f·gelu(u_H)]                   u = [Wgate ; Wfc ; W1] y + [bgate ; bfc ; b1]

``y`` [..., D], Wfc [M, D], W1 [H, D], f droppath's factor of each row, s the adapter's scale. Two products forward, two
and the adapter's backward. Beside y, backward wants u, but of the frozen columns the slope at u alone, which in half
precision is kept in a byte (:mod:`aim_kernels.wide_slope`), the adapter's columns being formed again; the activation
and the slope's product may stand within the products beside them (:mod:`aim_kernels.wide_product`). In float32 and
float64, and of a gated MLP, whose slopes are two numbers a unit, u is kept whole, or it is formed again. The stacked
weights are formed when they are needed and never kept. Where the frozen weights are there in eight bits, the adapter
stands beside them: it keeps the products' dtype, has columns and products of its own, and adds to the same out and dy.
Derivation: kernels/README.md. Source: AIM (ICLR 2023).
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import scaled_wide_product, wide_product, wide_swiglu  # noqa: F401  (registers the operators)
from aim_kernels.adaptation import adapter_reference, mlp_reference
from aim_kernels.adapter import adapter_gradients
from aim_kernels.bias_gradients import Biases, bias_gradients, gelu_gradients
from aim_kernels.choices import MLPActivation
from aim_kernels.column_sum import branch_gradient
from aim_kernels.formed_adapter import formed_of
from aim_kernels.memory import copied_for_backward
from aim_kernels.precision import compute_dtype, in_dtype
from aim_kernels.registration import ops
from aim_kernels.residual import row_factor
from aim_kernels.scaled_product import input_gradient, product
from aim_kernels.scaled_rows import quantised
from aim_kernels.weights import (
    NOT_FORMED,
    UNSCALED,
    AdapterGradients,
    AdapterNeeds,
    AdapterWeights,
    FormedAdapter,
    Keeping,
    MLPWeights,
    ScaledRows,
    ScaledTrunk,
    StackedMLP,
    apply,
    require_gradient,
)
from aim_kernels.wide_activation import gelu


class WidenedMLP(NamedTuple):
    """The frozen MLP, the adapter that widens it, and how they are applied."""

    mlp: MLPWeights
    adapter: FormedAdapter | None  # its second bias with that of the frozen projection
    factor: Tensor | None  # [rows] droppath's
    activation: MLPActivation
    dtype: torch.dtype
    stacked: StackedMLP | None = None  # where somebody stacked them
    scaled: ScaledTrunk = UNSCALED

    @property
    def in_half(self) -> bool:
        """Whether its products are of half precision, and its hidden state has one slope a unit."""
        return self.dtype.itemsize == 2 and self.mlp.gate_weight is None and self.scaled.fc is None

    @property
    def in_eight(self) -> bool:
        """Whether, with one slope a unit, both of its products are in eight bits."""
        scaled = self.scaled.fc is not None and self.scaled.proj is not None
        return scaled and self.dtype.itemsize == 2 and self.mlp.gate_weight is None

    @property
    def beside(self) -> FormedAdapter | None:
        """The adapter, where it stands beside the frozen weights."""
        return None if self.scaled.fc is None else self.adapter

    @property
    def within(self) -> FormedAdapter | None:
        """The adapter, where its weights are stacked with the frozen ones."""
        return self.adapter if self.scaled.fc is None else None


class Hidden(NamedTuple):
    """What is kept of the hidden state before its activations: all of it, the frozen columns' slopes, or nothing."""

    u: Tensor | None = None  # [rows, M + H], gated [rows, 2M + H], without the adapter's where it stands beside
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
    dtype = compute_dtype(y, fc_weight)
    ready = formed_of(adapter, dtype, beside=mlp.proj_bias, scale=scale)
    operands = _Operands(y, row_factor(drop, y), mlp, ready, activation, keep_hidden, dtype)
    return apply(_WideMLP, operands, y, *(ready or NOT_FORMED))


_ACTIVATIONS = get_args(MLPActivation)


def check_activation(mlp: MLPWeights, activation: MLPActivation) -> None:
    """Raises ValueError for an activation that there is not, and for weights that are gated where it is not."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is none of {', '.join(_ACTIVATIONS)}")
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
    factor: Tensor | None  # [rows] droppath's
    mlp: MLPWeights
    adapter: FormedAdapter | None
    activation: MLPActivation
    keep_hidden: bool
    dtype: torch.dtype


_KEEPING = Keeping(_Operands, given=0)


class _WideMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: _Operands, *_: Tensor | None) -> Tensor:
        rows = o.y.to(o.dtype).reshape(-1, o.y.shape[-1])
        wide = _widened(o, o.adapter)
        hidden, kept = activated(wide, rows, o.keep_hidden)
        out, dropped_bias = contract(wide, hidden, rows)
        if wide.factor is not None and dropped_bias is not None:
            out.addcmul_(wide.factor[:, None].to(o.dtype), dropped_bias.to(o.dtype))
        _KEEPING.keep(ctx, rows, o, *kept)
        ctx.dtype_in = o.y.dtype
        return out.view(o.y.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        o, u, slope = _KEEPING.kept(ctx)
        _, needs_y, *flags = ctx.needs_input_grad
        needs = AdapterNeeds(*flags)
        wide = _widened(o, copied_for_backward(o.adapter, g))
        kept = Hidden(u, slope) if o.keep_hidden else Hidden(expand(wide, o.y))
        branch, db2 = branch_gradient(g, o.dtype, needs.b2, wide.factor, dropped=False)
        sums = None if db2 is None else db2[None]
        dy, gradients = wide_gradients(wide, branch, None, sums, o.y, kept, needs_y, needs)
        return None, None if dy is None else dy.view(g.shape).to(ctx.dtype_in), *gradients


def _widened(o: _Operands, adapter: FormedAdapter | None) -> WidenedMLP:
    factor = None if adapter is None else o.factor
    return WidenedMLP(o.mlp, adapter, factor, o.activation, o.dtype)


def stack_weights(wide: WidenedMLP) -> WidenedMLP:
    """The same with its weights stacked, to be read several times."""
    if wide.stacked is not None or wide.within is None:
        return wide
    return wide._replace(stacked=StackedMLP(_widening(wide), _widening_bias(wide), _narrowing(wide)))


def expand(wide: WidenedMLP, y: Tensor | ScaledRows) -> Tensor:
    """u of :class:`Hidden`, of ``y`` [rows, D]."""
    return product(y, _widening(wide), _widening_bias(wide), wide.scaled.fc, wide.dtype)


def activated(wide: WidenedMLP, y: Tensor | ScaledRows, keep: bool) -> tuple[Tensor | ScaledRows, Hidden]:
    """The hidden state of ``y`` [rows, D] after its activations, [rows, M + H], without the adapter's columns where it
    stands beside, and what ``keep`` asks to be kept of it."""
    split = wide.mlp.fc_weight.shape[0]
    if wide.in_half and isinstance(y, Tensor):
        weights = (_widening(wide), _widening_bias(wide))
        hidden, slope = ops.wide_product(y, *weights, split, wide.activation, wide.factor, keep)
        return hidden, Hidden(slope=slope if keep else None)
    if wide.in_eight and wide.scaled.fc is not None:
        operands = *(y if isinstance(y, ScaledRows) else quantised(y)), *wide.scaled.fc.rows, _widening_bias(wide)
        *rows, slope = ops.scaled_wide_product(*operands, wide.activation, keep)
        return ScaledRows(*rows), Hidden(slope=slope if keep else None)
    u = expand(wide, y)
    kept = Hidden(u if keep else None)
    if wide.mlp.gate_weight is not None:
        return ops.wide_swiglu(u, split, wide.factor), kept
    return ops.wide_activation(u, split, wide.activation, wide.factor), kept


def contract(wide: WidenedMLP, hidden: Tensor | ScaledRows, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The output [rows, D], and what it still lacks: s·b2 [D], to be multiplied by the factor; None without one.

    ``y`` [rows, D] is read by an adapter that stands beside.
    """
    bias, dropped_bias = wide.mlp.proj_bias, None if wide.adapter is None else wide.adapter.added_bias
    if wide.adapter is not None and wide.factor is None:
        bias, dropped_bias = wide.adapter.low_b2, None
    out = product(hidden, _narrowing(wide), bias, wide.scaled.proj, wide.dtype)
    if (own := wide.beside) and y is not None:
        out.addmm_(gelu(F.linear(y, own.w1, own.low_b1), wide.factor), own.w2.t())
    return out, dropped_bias


def wide_gradients(
    wide: WidenedMLP,
    branch: Tensor,
    eight: ScaledRows | None,
    sums: Tensor | None,
    y: Tensor | None,
    kept: Hidden,
    needs_y: bool,
    needs: AdapterNeeds,
) -> tuple[Tensor | None, AdapterGradients]:
    """dy [rows, D] and the adapter's gradients from ``branch`` [rows, D], that of the output, in its dtype, and where
    somebody has it ``eight``, the same in eight bits.

    ``sums`` [N, D] are those of its rows times droppath's factor, where b2 wants its gradient. ``y`` [rows, D] is read
    for the adapter's hidden state, where that is not kept, and for the gradient of W1.
    """
    adapter, beside, factor, split = wide.within, wide.beside, wide.factor, wide.mlp.fc_weight.shape[0]
    first = split if wide.mlp.gate_weight is None else 2 * split  # of the adapter's columns in u
    own, du_own, gradients = None, None, None
    du: Tensor | ScaledRows | None = None
    if beside is not None and y is not None:
        u = F.linear(y, beside.w1, beside.low_b1)
        du_own, hidden, biases = gelu_gradients(beside, branch @ beside.w2, u, sums, factor)
        gradients = adapter_gradients(beside, needs, y, du_own, hidden, branch, biases)
        del u, hidden
    elif kept.u is not None:
        own = kept.u[:, first:]
    elif adapter is not None and y is not None:
        own = F.linear(y, adapter.w1, adapter.low_b1)
    dw1 = dw2 = None
    if adapter is not None and needs.w2 and own is not None:
        dw2 = in_dtype(branch.t() @ gelu(own.contiguous(), factor), adapter.w2.dtype)
    if needs_y or needs.w1 or needs.b1:
        if kept.slope is not None and wide.in_half:
            columns = branch.new_empty(branch.shape[0], 0) if own is None else own
            du = ops.wide_product_backward(branch, _narrowing(wide), kept.slope, columns, factor)
            del branch
        elif kept.slope is not None and wide.scaled.proj is not None:
            rows = eight or quantised(branch)
            del branch, eight
            du = ScaledRows(*ops.scaled_wide_product_backward(*rows, *wide.scaled.proj.columns, kept.slope, wide.dtype))
            del rows
        else:
            dhidden = input_gradient(eight or branch, _narrowing(wide), wide.scaled.proj, wide.dtype)
            del branch, eight
            if wide.mlp.gate_weight is not None:
                du = ops.wide_swiglu_backward(dhidden, kept.u, split, factor)
            else:
                du = ops.wide_activation_backward(dhidden, kept.u, split, wide.activation, factor)
            del dhidden
        if isinstance(du, Tensor) and beside is None:
            du_own = du[:, first:]
    if gradients is None:
        biases = Biases()
        if adapter is not None:
            biases = bias_gradients(adapter, du_own if needs.b1 else None, sums)
            if needs.w1 and du_own is not None and y is not None:
                dw1 = in_dtype(du_own.t() @ y, adapter.w1.dtype)
        gradients = AdapterGradients(dw1, biases.b1, dw2, biases.b2)
    if not needs_y or du is None:
        return None, gradients
    dy = input_gradient(du, _widening(wide), wide.scaled.fc, wide.dtype)
    if beside is not None and du_own is not None:
        dy.addmm_(du_own, beside.w1)
    return dy, gradients


def _widening(wide: WidenedMLP) -> Tensor:
    """[Wfc ; W1], [M + H, D], gated [Wgate ; Wfc ; W1], [2M + H, D]; in eight bits it is not read."""
    if wide.stacked is not None:
        return wide.stacked.widening
    if wide.scaled.fc is not None:
        return wide.mlp.fc_weight
    return _stacked(wide, wide.mlp.gate_weight, wide.mlp.fc_weight, None if wide.adapter is None else wide.adapter.w1)


def _widening_bias(wide: WidenedMLP) -> Tensor:
    """[bfc ; b1], [M + H], gated [bgate ; bfc ; b1], [2M + H], b1 where W1 is."""
    if wide.stacked is not None:
        return wide.stacked.bias
    return _stacked(wide, wide.mlp.gate_bias, wide.mlp.fc_bias, None if wide.within is None else wide.within.low_b1)


def _stacked(wide: WidenedMLP, *parts: Tensor | None) -> Tensor:
    """Those that there are, in the products' dtype."""
    there = [part.to(wide.dtype) for part in parts if part is not None]
    return there[0] if len(there) == 1 else torch.cat(there)


def _narrowing(wide: WidenedMLP) -> Tensor:
    """[Wproj | s·W2], [D, M + H]."""
    if wide.stacked is not None:
        return wide.stacked.narrowing
    weight = wide.mlp.proj_weight.to(wide.dtype)
    return weight if wide.within is None else torch.cat([weight, wide.within.w2], 1)
