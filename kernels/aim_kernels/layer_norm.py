"""Layer norm and RMS norm with frozen affine, and their input gradient alone.

    y = (x − mean) · rstd · weight + bias,  rstd = 1/√(var + eps),  statistics in float32 over the last axis
    dx = rstd · (g − avg(g) − x̂ · avg(g · x̂)) + residual,  g = dy · weight,  x̂ = (x − mean) · rstd

Without a bias it is the RMS norm, with mean = 0, var = avg(x²) and no avg(g); its ``mean`` is empty, [0].
``x`` [..., D]; ``y`` in any floating dtype (the products' dtype, while the residual stream may be float32); ``mean``,
``rstd`` [...] float32. The backward reads x (which may have been rounded since), or where it is given no ``mean``, x̂ in
its place; and it adds the gradient that flows around the norm (``residual``) in the same pass, in whose dtype it then
gives dx. ``layer_norm_kept`` also writes a copy of x, as it is kept for backward. Source: Ba et al., Layer
Normalization, 2016; Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_kernels import layer_norm_triton
from aim_kernels.adaptation import norm_reference
from aim_kernels.registration import alike, operator, ops
from aim_kernels.rows_triton import MAX_WIDTH
from aim_kernels.weights import NormWeights


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5, dtype: torch.dtype | None = None
) -> Tensor:
    """``y`` [..., D] in ``dtype`` (default: that of ``x``). Differentiable in ``x``.

    ``weight``, ``bias`` [D] are constants here; where one requires a gradient, torch's own norm runs instead. A
    ``bias`` of None is the RMS norm's. Raises ValueError when their shape is not [D].
    """
    if weight.shape != x.shape[-1:] or (bias is not None and bias.shape != x.shape[-1:]):
        raise ValueError(
            f"layer_norm of {list(x.shape)} needs weight and bias [{x.shape[-1]}], got {list(weight.shape)}"
        )
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return norm_reference(x, weight, bias, eps).to(dtype or x.dtype)
    return ops.layer_norm(x, weight, bias, eps, dtype or x.dtype)[0]


def layer_norm_to_keep(
    x: Tensor, norm: NormWeights, eps: float, dtype: torch.dtype, products: torch.dtype, recorded: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``y`` in ``dtype``, ``mean``, ``rstd``, and x for backward: in the dtype of the ``products`` if it is narrower.

    Its uses are the input gradient and running the norm again, whose results are rounded to that dtype. Unless the
    call is ``recorded`` by autograd nothing is kept, and x comes back as it is.
    """
    if recorded and products.itemsize < x.dtype.itemsize:
        return ops.layer_norm_kept(x, *norm, eps, dtype, products)
    return *ops.layer_norm(x, *norm, eps, dtype), x


def layer_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """``y``, ``mean``, ``rstd`` in plain torch; statistics in float64 for float64 input."""
    precise = torch.promote_types(x.dtype, torch.float32)
    wide = x.to(precise)
    if bias is None:
        rstd = (wide.square().mean(-1) + eps).rsqrt()
        return (wide * rstd[..., None] * weight.to(precise)).to(dtype), rstd.new_empty(0), rstd
    mean = wide.mean(-1)
    centred = wide - mean[..., None]
    rstd = (centred.square().mean(-1) + eps).rsqrt()
    y = centred * rstd[..., None] * weight.to(precise) + bias.to(precise)
    return y.to(dtype), mean, rstd


def layer_norm_kept_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype, kept: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``y``, ``mean``, ``rstd`` and a copy of x in the dtype ``kept``, in plain torch."""
    return *layer_norm_reference(x, weight, bias, eps, dtype), x.to(kept, copy=True)


def layer_norm_backward_reference(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor, residual: Tensor | None = None
) -> Tensor:
    """``dx`` of x's shape, in the dtype of ``residual`` or else of x, in plain torch."""
    wide, g = x.to(rstd.dtype), dy.to(rstd.dtype) * weight.to(rstd.dtype)
    rms = mean is not None and mean.shape != rstd.shape
    normal = wide
    if mean is not None:
        normal = (wide if rms else wide - mean[..., None]) * rstd[..., None]
    centred = g if rms else g - g.mean(-1, keepdim=True)
    dx = rstd[..., None] * (centred - normal * (g * normal).mean(-1, keepdim=True))
    return dx.to(x.dtype) if residual is None else (dx + residual).to(residual.dtype)


def _forward_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = _forward_fake(x, weight, bias, eps, dtype)
    layer_norm_triton.forward(x, weight, bias, eps, mean, rstd, y, kept)
    return y, mean, rstd


def _kept_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype, kept: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    copy = alike(x, kept)
    return *_forward_triton(x, weight, bias, eps, dtype, copy), copy


def _backward_triton(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor, residual: Tensor | None
) -> Tensor:
    dx = _backward_fake(dy, x, weight, mean, rstd, residual)
    layer_norm_triton.backward(dy, x, weight, mean, rstd, residual, dx)
    return dx


def _fits(x: Tensor, *_: Any) -> bool:
    return x.shape[-1] <= MAX_WIDTH


def _forward_cpp(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.contiguous().view(-1, x.shape[-1])
    affine = (None if v is None else v.float().contiguous() for v in (weight, bias))
    y, mean, rstd = torch.ops.aim_cpu.layer_norm_forward(rows, *affine, eps, dtype == torch.bfloat16)
    return y.view(x.shape), mean if bias is None else mean.view(x.shape[:-1]), rstd.view(x.shape[:-1])


def _kept_cpp(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype, kept: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    copy = x.to(kept, copy=True, memory_format=torch.contiguous_format)
    return *_forward_cpp(x, weight, bias, eps, dtype), copy


def _backward_cpp(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor, residual: Tensor | None
) -> Tensor:
    if mean is None:  # which a GPU alone is given
        return layer_norm_backward_reference(dy, x, weight, mean, rstd, residual)
    rows = (-1, x.shape[-1])
    dx = torch.ops.aim_cpu.layer_norm_backward(
        dy.contiguous().view(rows),
        x.contiguous().view(rows),
        weight.float().contiguous(),
        mean.contiguous().view(-1),
        rstd.contiguous().view(-1),
        None if residual is None else residual.contiguous().view(rows),
    )
    return dx.view(x.shape)


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    precise, rows = torch.promote_types(x.dtype, torch.float32), x.shape[:-1]
    mean, rstd = (x.new_empty(shape, dtype=precise) for shape in ((0,) if bias is None else rows, rows))
    return alike(x, dtype), mean, rstd


def _kept_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype, kept: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_forward_fake(x, weight, bias, eps, dtype), alike(x, kept)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor, residual: Tensor | None
) -> Tensor:
    return alike(x, x.dtype if residual is None else residual.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, *_ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _gradient(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None]:
    return ops.layer_norm_backward(dy, *ctx.saved_tensors, None), None, None, None, None


operator(
    "layer_norm",
    "(Tensor x, Tensor weight, Tensor? bias, float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    reference=layer_norm_reference,
    triton=_forward_triton,
    cpp=_forward_cpp,
    fits=_fits,
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_gradient,
)
operator(
    "layer_norm_kept",
    "(Tensor x, Tensor weight, Tensor? bias, float eps, ScalarType dtype, ScalarType kept)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=layer_norm_kept_reference,
    triton=_kept_triton,
    cpp=_kept_cpp,
    fits=_fits,
    fake=_kept_fake,
)
operator(
    "layer_norm_backward",
    "(Tensor dy, Tensor x, Tensor weight, Tensor? mean, Tensor rstd, Tensor? residual) -> Tensor",
    reference=layer_norm_backward_reference,
    triton=_backward_triton,
    cpp=_backward_cpp,
    fits=_fits,
    fake=_backward_fake,
)
