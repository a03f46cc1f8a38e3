"""The bottleneck adapter as one differentiable function, with what usually surrounds it.

    out = residual + factor · scale · (skip · z + W2·gelu(W1 z + b1) + b2)

``z`` [..., D]; H hidden units; ``residual`` of z's shape or None for 0; ``factor`` broadcasts to z (droppath) or None
for 1. On a GPU in half precision with H up to 256 it is one launch forward, and one backward beside the two products of
the weight gradients (:mod:`aim_kernels.adapter_triton`). Elsewhere the products are the library's, with the activation,
and the residual add with its factor, one pass each. Kept for backward: z and the hidden state before its activation.
Source: Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019; AIM (ICLR 2023).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import adapter_triton, wide_activation  # noqa: F401  (the second registers its operator)
from aim_kernels.adaptation import AdapterWeights, adapter_reference
from aim_kernels.composed import Needs, adapter_gradients, compute_dtype, row_factor, to_dtype
from aim_kernels.registration import operator


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
        source, factor = z.to(dtype).reshape(-1, z.shape[-1]), row_factor(factor, z)
        around = None if residual is None else residual.reshape(source.shape)
        out, u = torch.ops.aim.adapter(source, *to_dtype(weights, dtype), skip, scale, around, factor)
        ctx.save_for_backward(source, factor, u, *args[:4])
        ctx.constants = args[4:]
        ctx.dtype_in = z.dtype
        return out.view(z.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        source, factor, u, *tensors = ctx.saved_tensors
        weights, (skip, scale, dtype) = AdapterWeights(*tensors), ctx.constants
        low, needs_z = to_dtype(weights, dtype), ctx.needs_input_grad[0]
        needs = Needs(*ctx.needs_input_grad[3:7])
        around = g if ctx.needs_input_grad[1] else None
        if not (needs_z or any(needs)):
            return (None, around, *(None,) * 8)
        rows = g.reshape(source.shape)
        dz, du, hidden, branch = torch.ops.aim.adapter_backward(rows, u, low.w1, low.w2, skip, scale, factor, needs_z)
        gradients = adapter_gradients(weights, needs, source, du, hidden, branch if len(branch) else rows)
        dz = dz.view(g.shape).to(ctx.dtype_in) if needs_z else None
        return (dz, around, None, *gradients, None, None, None)


def products(
    z: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    skip: bool,
    scale: float,
    residual: Tensor | None,
    factor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    u = F.linear(z, w1, b1)
    hidden = torch.ops.aim.wide_activation(u, 0, False, None)
    branch = F.linear(hidden, w2 * scale, b2 * scale)
    if skip:
        branch = torch.add(branch, z, alpha=scale)
    return (branch if residual is None else torch.ops.aim.residual_add(residual, branch, factor, None)), u


def products_backward(
    g: Tensor, u: Tensor, w1: Tensor, w2: Tensor, skip: bool, scale: float, factor: Tensor | None, needs_dz: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    branch, needs_branch = g, adapter_triton.needs_branch(g, u, scale, factor)
    if needs_branch:
        branch = ((g if factor is None else g * factor[:, None].to(g.dtype)) * scale).to(u.dtype)
    du = torch.ops.aim.wide_activation_backward(branch @ w2, u, 0, False, None)
    hidden = torch.ops.aim.wide_activation(u, 0, False, None)
    dz = u.new_empty((0, g.shape[1]))
    if needs_dz:
        dz = torch.addmm(branch, du, w1) if skip else du @ w1
    return dz, du, hidden, branch if needs_branch else u.new_empty((0, g.shape[1]))


def _forward_fake(
    z: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    skip: bool,
    scale: float,
    residual: Tensor | None,
    factor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    out = z.new_empty(z.shape, dtype=z.dtype if residual is None else residual.dtype)
    return out, z.new_empty((z.shape[0], w1.shape[0]))


def _backward_fake(
    g: Tensor, u: Tensor, w1: Tensor, w2: Tensor, skip: bool, scale: float, factor: Tensor | None, needs_dz: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, width = g.shape
    needed = (needs_dz, adapter_triton.needs_branch(g, u, scale, factor))
    dz, branch = (u.new_empty((rows if wanted else 0, width)) for wanted in needed)
    return dz, u.new_empty(u.shape), u.new_empty(u.shape), branch


operator(
    "adapter",
    "(Tensor z, Tensor w1, Tensor b1, Tensor w2, Tensor b2, bool skip, float scale, Tensor? residual, Tensor? factor)"
    " -> (Tensor, Tensor)",
    reference=products,
    triton=adapter_triton.forward,
    fits=lambda z, w1, *_: adapter_triton.fits(z, len(w1)),
    fake=_forward_fake,
)
operator(
    "adapter_backward",
    "(Tensor g, Tensor u, Tensor w1, Tensor w2, bool skip, float scale, Tensor? factor, bool needs_dz)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=products_backward,
    triton=adapter_triton.backward,
    fits=lambda g, u, w1, *_: adapter_triton.fits(u, len(w1)),
    fake=_backward_fake,
)
