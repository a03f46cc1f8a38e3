"""The frozen trunk's products in eight bits: y = x Wᵀ + b, and of its backward dx = dy W.

    y[m, n] = sx[m] · sw[n] · Σ_k x8[m, k] w8[n, k] + b[n]

What is summed over has no scale of its own, and both operands lie contiguous along it. So a frozen weight is quantised
twice, once: along its rows for the forward, along its columns for the backward. All is e4m3, gradients too: with a
scale a row, a third bit of mantissa is worth more than the range of e5m2 (measured: docs/speed.md). On a GPU the
product is torch's, accumulated in float32; elsewhere the same values are multiplied in float32. A weight with a side
that 16 does not divide, which the library cannot serve, is not quantised.

A row of a product is bounded before it is there, by the largest row of the weight and by the bias:

    |y[m, n]| ≤ 448 (sx[m] · r + c),   r = max_n sw[n] · Σ_k |w8[n, k]|,   c = max_n |b[n]| / 448

So a next product in eight bits may read what a program writes that sees no more of the row than its tile. A bound is
looser than the row's largest element, which costs range and no precision (measured: docs/speed.md); it takes no state
from step to step, and nothing exceeds it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels.precision import compute_dtype, in_dtype
from aim_kernels.registration import architecture_of
from aim_kernels.scaled_rows import LARGEST, LEAST, quantised
from aim_kernels.weights import BoundedRows, ScaledRows, ScaledWeight

SIDES, OLDEST = 16, 89  # what divides a side; the first architecture with such products
STEEPEST = 1.14  # an activation multiplies its input by less, and its slope a gradient: by what a code can say at most


def scaled_products_missing(device: torch.device) -> str | None:
    """Why ``device`` has no products in eight bits, or None. A CPU has them in float32."""
    if device.type != "cuda":
        return None
    architecture = architecture_of(device)
    if architecture < OLDEST:
        return f"its compute capability is {architecture / 10}, below 8.9"
    rows = ScaledRows(torch.ones(16, 16, device=device).to(torch.float8_e4m3fn), torch.ones(16, 1, device=device))
    try:
        multiplied(rows, rows, torch.ones(16, device=device), torch.bfloat16)
    except RuntimeError as error:
        return f"torch {torch.__version__} has no such product there: {str(error).splitlines()[0]}"
    return None


def scaled_weight(weight: Tensor | None, bias: Tensor | None = None) -> ScaledWeight | None:
    """A frozen ``weight`` [N, K] in eight bits, bounded with the ``bias`` [N] of its products; None of one that trains,
    is not there, or has an odd side."""
    if weight is None or weight.requires_grad or any(side % SIDES for side in weight.shape):
        return None
    weight = weight.detach()
    return ScaledWeight(_bounded(quantised(weight), bias), _bounded(quantised(weight.t()), None))


def _bounded(rows: ScaledRows, bias: Tensor | None) -> BoundedRows:
    """With r and c, both times STEEPEST, so that they bound what an activation makes of the product as well."""
    reach = (rows.values.to(rows.scale.dtype).abs().sum(1, keepdim=True) * rows.scale).amax()
    most = torch.zeros_like(reach) if bias is None else bias.detach().abs().amax().to(reach.dtype)
    return BoundedRows(*rows, torch.stack([reach, most.clamp_min(LEAST) / LARGEST]) * STEEPEST)


def product(
    x: Tensor | ScaledRows, weight: Tensor, bias: Tensor, scaled: ScaledWeight | None, dtype: torch.dtype
) -> Tensor:
    """``x Wᵀ + b`` in ``dtype``, that of ``x`` [..., K], in eight bits where the weight is there in them.

    Where ``x`` has been quantised, the weight must be. Not differentiable.
    """
    if scaled is None:
        return F.linear(x, in_dtype(weight, dtype), in_dtype(bias, dtype))  # type: ignore[arg-type]
    if isinstance(x, ScaledRows):
        return multiplied(x, scaled.rows, bias, dtype)
    return multiplied(quantised(x.flatten(0, -2)), scaled.rows, bias, dtype).view(*x.shape[:-1], -1)


def input_gradient(dy: Tensor | ScaledRows, weight: Tensor, scaled: ScaledWeight | None, dtype: torch.dtype) -> Tensor:
    """``dy W`` [M, K] in ``dtype``, that of ``dy`` [M, N], likewise."""
    if scaled is None:
        return dy @ in_dtype(weight, dtype)  # type: ignore[operator]
    return multiplied(dy if isinstance(dy, ScaledRows) else quantised(dy), scaled.columns, None, dtype)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor, scaled: ScaledWeight | None) -> Tensor:
    """``F.linear`` of a trunk's weight, in eight bits where it is there in them; differentiable all the same."""
    if scaled is None:
        return F.linear(x, weight, bias)
    return _FrozenLinear.apply(x, bias, scaled, compute_dtype(x, weight))


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, scaled: ScaledWeight, dtype: torch.dtype) -> Tensor:
        ctx.scaled, ctx.dtype, ctx.dtypes = scaled, dtype, (x.dtype, bias.dtype)
        return product(x, scaled.rows.values, bias, scaled, dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        rows, (of_x, of_bias) = g.reshape(-1, g.shape[-1]), ctx.dtypes
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx = input_gradient(rows, rows, ctx.scaled, ctx.dtype).view(*g.shape[:-1], -1).to(of_x)
        if ctx.needs_input_grad[1]:
            db = rows.sum(0, dtype=torch.promote_types(of_bias, torch.float32)).to(of_bias)
        return dx, db, None, None


def multiplied(x: ScaledRows, weight: ScaledRows | BoundedRows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``x weightᵀ + bias`` [M, N]."""
    if x.values.is_cuda:
        low = None if bias is None else bias.to(dtype)
        return torch._scaled_mm(x.values, weight.values.t(), x.scale, weight.scale.t(), low, out_dtype=dtype)
    return multiplied_reference(x, weight, bias, dtype)


def multiplied_reference(
    x: ScaledRows, weight: ScaledRows | BoundedRows, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The same in plain torch, multiplied in the scales' dtype."""
    with torch.autocast(x.values.device.type, enabled=False):
        wide = x.values.to(x.scale.dtype) @ weight.values.to(x.scale.dtype).t()
        wide = wide.mul_(x.scale).mul_(weight.scale.t())
        return (wide if bias is None else wide.add_(bias)).to(dtype)
