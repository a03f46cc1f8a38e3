"""The frozen MLP widened by an adapter: one MLP of M + H hidden units with two activations.

    out = [Wproj | s·W2] · [act(u_M) ; f·gelu(u_H)] + bproj + f·s·b2,   u = [Wfc ; W1] y + [bfc ; b1]

``y`` [..., D], Wfc [M, D], W1 [H, D], f droppath's factor of each row, s the adapter's scale. Two products forward, two
and the adapter's backward. Beside y, backward wants u, but of the frozen columns the slope at u alone, which in half
precision is kept in a byte (:mod:`aim_kernels.wide_slope`), the adapter's columns being formed again. In float32 and
float64 u is kept whole, or it is formed again. The stacked weights are formed when they are needed and never kept.
Derivation: kernels/README.md. Source: AIM (ICLR 2023).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import wide_activation, wide_slope  # noqa: F401  (register the operators)
from aim_kernels.adaptation import AdapterWeights, activate, adapter_reference
from aim_kernels.choices import Activation
from aim_kernels.composed import Needs, compute_dtype, row_factor, to_dtype
from aim_kernels.recomputation import again
from aim_kernels.residual import column_sum

Trunk = tuple[Tensor, Tensor, Tensor, Tensor]  # Wfc [M, D], bfc [M], Wproj [D, M], bproj [D]


class Hidden(NamedTuple):
    """What is kept of the hidden state before its activations: all of it, the frozen columns' slopes, or nothing."""

    u: Tensor | None = None  # [rows, M + H]
    slope: Tensor | None = None  # [rows, M] uint8


def wide_mlp(
    y: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    adapter: AdapterWeights | None = None,
    drop: Tensor | None = None,
    scale: float = 1.0,
    activation: Activation = "quick_gelu",
    keep_hidden: bool = True,
) -> Tensor:
    """``mlp(y) + drop · scale · A(y)`` [..., D] in the products' dtype: autocast's, else that of ``fc_weight``.

    ``drop`` broadcasts to ``y`` with one factor a row, None for 1. ``keep_hidden`` keeps what backward wants of the
    hidden state, else it is formed again. Differentiable in ``y`` and the adapter; when a trunk weight requires a
    gradient the reference runs instead. Raises ValueError for shapes that cannot be.
    """
    width = y.shape[-1]
    if fc_weight.shape[1:] != (width,) or proj_weight.shape != fc_weight.shape[::-1]:
        shapes = f"{list(fc_weight.shape)} and {list(proj_weight.shape)}"
        raise ValueError(f"wide_mlp of {list(y.shape)} needs weights [M, {width}] and [{width}, M], got {shapes}")
    trunk = (fc_weight, fc_bias, proj_weight, proj_bias)
    if any(weight.requires_grad for weight in trunk) or not y.numel():
        return wide_mlp_reference(y, *trunk, adapter, drop, scale, activation)
    dtype = compute_dtype(y, fc_weight)
    weights = (None,) * 4 if adapter is None else adapter
    return _WideMLP.apply(y, drop, *weights, *trunk, scale, activation == "quick_gelu", keep_hidden, dtype)


def wide_mlp_reference(
    y: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    adapter: AdapterWeights | None = None,
    drop: Tensor | None = None,
    scale: float = 1.0,
    activation: Activation = "quick_gelu",
) -> Tensor:
    """The MLP and the adapter apart, in plain torch."""
    out = F.linear(activate(F.linear(y, fc_weight, fc_bias), activation), proj_weight, proj_bias)
    if adapter is None:
        return out
    branch = adapter_reference(y, adapter) * scale
    return out + (branch if drop is None else branch * drop)


class _WideMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, drop: Tensor | None, *args: Any) -> Tensor:
        adapter, trunk, (scale, quick, keep_hidden, dtype) = _unpack(args)
        rows = y.to(dtype).reshape(-1, y.shape[-1])
        factor = row_factor(drop, y) if adapter is not None else None
        u = expand(rows, adapter, trunk, dtype)
        hidden, kept = activated(u, trunk[0].shape[0], factor, quick, keep_hidden)
        out, dropped_bias = contract(hidden, adapter, trunk, factor, scale, dtype)
        if factor is not None and dropped_bias is not None:
            out = out.addcmul(factor[:, None].to(dtype), dropped_bias.to(dtype))
        ctx.save_for_backward(rows, drop, *kept, *args[:8])
        ctx.constants, ctx.dtype_in = args[8:], y.dtype
        return out.view(y.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        rows, drop, u, slope, *weights = ctx.saved_tensors
        weights = again(weights, 4, g)
        adapter, trunk, (scale, quick, keep_hidden, dtype) = _unpack((*weights, *ctx.constants))
        factor = row_factor(drop, g) if adapter is not None else None
        kept = Hidden(u, slope) if keep_hidden else Hidden(expand(rows, adapter, trunk, dtype))
        needs = Needs(*ctx.needs_input_grad[2:6])
        branch = g.to(dtype).reshape(rows.shape)
        dy, gradients = wide_gradients(
            branch, rows, kept, adapter, trunk, factor, scale, quick, ctx.needs_input_grad[0], needs
        )
        dy = None if dy is None else dy.view(g.shape).to(ctx.dtype_in)
        return (dy, None, *gradients, *(None,) * (len(ctx.needs_input_grad) - 6))


def expand(y: Tensor, adapter: AdapterWeights | None, trunk: Trunk, dtype: torch.dtype) -> Tensor:
    """u [rows, M + H] of ``y`` [rows, D]."""
    bias = trunk[1].to(dtype)
    if adapter is not None:
        bias = torch.cat([bias, to_dtype(adapter, dtype).b1])
    return F.linear(y, _widening(adapter, trunk, dtype), bias)


def activated(u: Tensor, split: int, factor: Tensor | None, quick: bool, keep: bool) -> tuple[Tensor, Hidden]:
    """The hidden state after its activations [rows, M + H], and what ``keep`` asks to be kept of it."""
    if keep and u.dtype.itemsize == 2:
        hidden, slope = torch.ops.aim.wide_slope(u, split, quick, factor)
        return hidden, Hidden(slope=slope)
    return torch.ops.aim.wide_activation(u, split, quick, factor), Hidden(u if keep else None)


def contract(
    hidden: Tensor,
    adapter: AdapterWeights | None,
    trunk: Trunk,
    factor: Tensor | None,
    scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """The output [rows, D], and what it still lacks: s·b2 [D], to be multiplied by ``factor``; None without one."""
    bias, dropped_bias = trunk[3].to(dtype), None
    if adapter is not None and factor is None:
        bias = bias + scale * adapter.b2.to(dtype)
    elif adapter is not None:
        dropped_bias = scale * adapter.b2
    return F.linear(hidden, _narrowing(adapter, trunk, scale, dtype), bias), dropped_bias


def wide_gradients(
    branch: Tensor,
    y: Tensor | None,
    kept: Hidden,
    adapter: AdapterWeights | None,
    trunk: Trunk,
    factor: Tensor | None,
    scale: float,
    quick: bool,
    needs_y: bool,
    needs: Needs,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """dy [rows, D] and the adapter's four gradients from ``branch`` [rows, D], that of the output, in its dtype.

    ``y`` [rows, D] is read for the adapter's hidden state, where that is not kept, and for the gradient of W1.
    """
    dtype, split = branch.dtype, trunk[0].shape[0]
    gradients: list[Tensor | None] = [None] * 4
    needs_du = needs_y or needs.w1 or needs.b1
    own, du = None, None
    if kept.u is not None:
        own = kept.u[:, split:]
    elif adapter is not None and y is not None:
        own = F.linear(y, adapter.w1.to(dtype), adapter.b1.to(dtype))
    if needs_du:
        dhidden = branch @ _narrowing(adapter, trunk, scale, dtype)
        if kept.slope is None:
            du = torch.ops.aim.wide_activation_backward(dhidden, kept.u, split, quick, factor)
        else:
            columns = branch.new_empty(branch.shape[0], 0) if own is None else own
            du = torch.ops.aim.wide_slope_backward(dhidden, kept.slope, columns, factor)
    if adapter is not None and any(needs):
        if needs.w2 and own is not None:
            value = torch.ops.aim.wide_activation(own.contiguous(), 0, False, factor)
            gradients[2] = (branch.t() @ value).to(adapter.w2.dtype) * scale
        if needs.b2:
            dropped = branch if factor is None else branch * factor[:, None].to(dtype)
            gradients[3] = column_sum(dropped, adapter.b2.dtype) * scale
        if needs.b1 and du is not None:
            gradients[1] = column_sum(du[:, split:], adapter.b1.dtype)
        if needs.w1 and du is not None and y is not None:
            gradients[0] = (du[:, split:].t() @ y).to(adapter.w1.dtype)
    dy = du @ _widening(adapter, trunk, dtype) if needs_y and du is not None else None
    return dy, gradients


def _unpack(args: tuple[Any, ...]) -> tuple[AdapterWeights | None, Trunk, tuple[Any, ...]]:
    adapter = None if args[0] is None else AdapterWeights(*args[:4])
    return adapter, (args[4], args[5], args[6], args[7]), args[8:]


def _widening(adapter: AdapterWeights | None, trunk: Trunk, dtype: torch.dtype) -> Tensor:
    """[Wfc ; W1], [M + H, D]."""
    weight = trunk[0].to(dtype)
    return weight if adapter is None else torch.cat([weight, adapter.w1.to(dtype)])


def _narrowing(adapter: AdapterWeights | None, trunk: Trunk, scale: float, dtype: torch.dtype) -> Tensor:
    """[Wproj | s·W2], [D, M + H]."""
    weight = trunk[2].to(dtype)
    return weight if adapter is None else torch.cat([weight, (scale * adapter.w2).to(dtype)], 1)
