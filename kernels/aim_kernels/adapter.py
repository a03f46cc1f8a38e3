"""The bottleneck adapter as one differentiable function, with what usually surrounds it.

    out = residual + factor · scale · (skip · z + W2·gelu(W1 z + b1) + b2)

``z`` [..., D]; H hidden units; ``residual`` of z's shape or None for 0; ``factor`` broadcasts to z (droppath) or None
for 1. On a GPU in half precision with H up to 256 it is one launch forward, and one backward beside the two products of
the weight gradients (:mod:`aim_kernels.adapter_triton`). Elsewhere the products are the library's, with the activation,
and the residual add with its factor, one pass each. Kept for backward: z and the hidden state before its activation.
Source: Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019; AIM (ICLR 2023).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import adapter_triton
from aim_kernels.adaptation import adapter_reference
from aim_kernels.bias_gradients import Biases, bias_gradients
from aim_kernels.precision import cast, compute_dtype, in_dtype
from aim_kernels.registration import operator, ops
from aim_kernels.residual import row_factor
from aim_kernels.weights import AdapterGradients, AdapterNeeds, AdapterWeights, FormedAdapter, Keeping, apply
from aim_kernels.wide_activation import gelu, gelu_backward


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
    operands = _Operands(z, residual, factor, weights, skip, scale, compute_dtype(z, z))
    return apply(_Adapter, operands, z, residual, *weights)


def adapter_gradients(
    weights: AdapterWeights | FormedAdapter,
    needs: AdapterNeeds,
    source: Tensor,
    du: Tensor,
    hidden: Tensor,
    dout: Tensor,
    biases: Biases,
) -> AdapterGradients:
    """Gradients of ``W2·gelu(W1·source + b1) + b2`` in the dtypes of ``weights``.

    ``source`` [M, D] is the adapter's input, ``du`` [M, H] the gradient before its activation, ``hidden`` [M, H] the
    value after it, and ``dout`` [M, D] the gradient of its output.
    """
    return AdapterGradients(
        in_dtype(du.t() @ source, weights.w1.dtype) if needs.w1 else None,
        biases.b1 if needs.b1 else None,
        in_dtype(dout.t() @ hidden, weights.w2.dtype) if needs.w2 else None,
        biases.b2 if needs.b2 else None,
    )


class _Operands(NamedTuple):
    z: Tensor
    residual: Tensor | None
    factor: Tensor | None
    weights: AdapterWeights
    skip: bool
    scale: float
    dtype: torch.dtype


_KEEPING = Keeping(_Operands, given=1)


class _Adapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: _Operands, *_: Tensor | None) -> Tensor:
        source, factor = o.z.to(o.dtype).reshape(-1, o.z.shape[-1]), row_factor(o.factor, o.z)
        around = None if o.residual is None else o.residual.reshape(source.shape)
        out, u = ops.adapter(source, *cast(o.weights, o.dtype), o.skip, o.scale, around, factor)
        _KEEPING.keep(ctx, source, o._replace(factor=factor), u)
        ctx.dtype_in = o.z.dtype
        return out.view(o.z.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        o, u = _KEEPING.kept(ctx)
        _, needs_z, needs_residual, *flags = ctx.needs_input_grad
        needs, around = AdapterNeeds(*flags), g if needs_residual else None
        if not (needs_z or any(needs)):
            return None, None, around, *(None,) * 4
        low, rows = cast(o.weights, o.dtype), g.reshape(o.z.shape)
        dz, du, hidden, branch = ops.adapter_backward(rows, u, low.w1, low.w2, o.skip, o.scale, o.factor, needs_z)
        dout = branch if len(branch) else rows
        biases = bias_gradients(o.weights, du if needs.b1 else None, dout if needs.b2 else None)
        gradients = adapter_gradients(o.weights, needs, o.z, du, hidden, dout, biases)[:4]
        return None, dz.view(g.shape).to(ctx.dtype_in) if needs_z else None, around, *gradients


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
    hidden = gelu(u)
    branch = F.linear(hidden, w2 * scale, b2 * scale)
    if skip:
        branch = torch.add(branch, z, alpha=scale)
    return (branch if residual is None else ops.residual_add(residual, branch, factor, None)), u


def products_backward(
    g: Tensor, u: Tensor, w1: Tensor, w2: Tensor, skip: bool, scale: float, factor: Tensor | None, needs_dz: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    branch, needs_branch = g, adapter_triton.needs_branch(g, u, scale, factor)
    if needs_branch:
        branch = ((g if factor is None else g * factor[:, None].to(g.dtype)) * scale).to(u.dtype)
    du = gelu_backward(branch @ w2, u)
    hidden = gelu(u)
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
