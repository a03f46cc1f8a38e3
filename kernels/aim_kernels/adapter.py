"""The bottleneck adapter as one differentiable function, with what usually surrounds it.

    out = residual + factor · scale · (skip · z + W2·gelu(W1 z + b1) + b2)

``z`` [..., D]; H hidden units; ``residual`` of z's shape or None for 0; ``factor`` broadcasts to z (droppath) or None
for 1. The two products are the library's; the activation and its derivative, and the residual add with its factor, are
one pass each; the scale is folded into W2 and b2. Kept for backward: z and the hidden state before its activation.
Source: Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019; AIM (ICLR 2023).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import wide_activation  # noqa: F401  (registers the operator)
from aim_kernels.adaptation import AdapterWeights, adapter_reference
from aim_kernels.composed import Needs, adapter_gradients, compute_dtype, row_factor, to_dtype
from aim_kernels.residual import residual_add


def adapter(
    z: Tensor,
    weights: AdapterWeights,
    skip: bool = False,
    scale: float = 1.0,
    residual: Tensor | None = None,
    factor: Tensor | None = None,
) -> Tensor:
    """The formula above; differentiable in ``z``, ``residual`` and the four weights.

    Products run in autocast's dtype, else in that of ``z``; the result has the dtype of ``residual``, else that of the
    products. ``factor`` needs a ``residual``. Raises ValueError for shapes that cannot be.
    """
    hidden, width = weights.w1.shape
    if z.shape[-1] != width or weights.w2.shape != (width, hidden):
        shapes = f"W1 {list(weights.w1.shape)} and W2 {list(weights.w2.shape)}"
        raise ValueError(f"adapter of {list(z.shape)} needs W1 [H, D] and W2 [D, H] of its width, got {shapes}")
    if residual is not None and residual.shape != z.shape:
        raise ValueError(f"residual {list(residual.shape)} has not the shape of z {list(z.shape)}")
    if factor is not None and residual is None:
        raise ValueError("factor multiplies a residual branch: give the residual too, or multiply the result")
    if not z.numel():
        return z + adapter_reference(z, weights)
    return _Adapter.apply(z, residual, factor, *weights, skip, scale, compute_dtype(z, z))


class _Adapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, residual: Tensor | None, factor: Tensor | None, *args: Any) -> Tensor:
        weights, (skip, scale, dtype) = AdapterWeights(*args[:4]), args[4:]
        low = to_dtype(weights, dtype)
        source = z.to(dtype).reshape(-1, z.shape[-1])
        u = F.linear(source, low.w1, low.b1)
        hidden = torch.ops.aim.wide_activation(u, 0, False, None)
        branch = F.linear(hidden, low.w2 * scale, low.b2 * scale)
        if skip:
            branch = torch.add(branch, source, alpha=scale)
        ctx.save_for_backward(source, factor, u, *args[:4])
        ctx.constants = args[4:]
        ctx.dtype_in = z.dtype
        if residual is None:
            return branch.view(z.shape)
        return residual_add(residual, branch, row_factor(factor, residual))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        source, factor, u, *tensors = ctx.saved_tensors
        weights, (skip, scale, dtype) = AdapterWeights(*tensors), ctx.constants
        low = to_dtype(weights, dtype)
        branch = ((g if factor is None else g * factor.to(g.dtype)) * scale).to(dtype).reshape(source.shape)
        du = torch.ops.aim.wide_activation_backward(branch @ low.w2, u, 0, False, None)
        hidden = torch.ops.aim.wide_activation(u, 0, False, None)
        gradients = adapter_gradients(weights, Needs(*ctx.needs_input_grad[3:7]), source, du, hidden, branch)
        dz = None
        if ctx.needs_input_grad[0]:
            dz = torch.addmm(branch, du, low.w1) if skip else du @ low.w1
            dz = dz.view(g.shape).to(ctx.dtype_in)
        return dz, g if ctx.needs_input_grad[1] else None, None, *gradients, None, None, None
