"""The widened MLP's two products beside its activation: the one before it, and of the backward the one after it.

    hidden = act(y Wᵀ + b)                 and, where they are kept, the slopes' codes
    du = (dout V) ∘ slope                  of the adapter's columns ∘ gelu'(own)·factor

``y``, ``dout`` [rows, D], W ``widening`` [M + H, D], V ``narrowing`` [D, M + H]; activation, ``factor`` [rows],
``slope`` [rows, M] and ``own`` [rows, H] as in :mod:`aim_kernels.wide_slope`, ``split`` being M. By the committed block
shapes a library multiplies and a pass over its result follows. What a tuning may find faster, in half precision, has
the pass within the product (:mod:`aim_kernels.wide_product_triton`) and moves 2 (M + H) numbers a row less each way.
These are parts of functions whose backward is written out and have no gradient of their own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels import wide_product_triton, wide_slope
from aim_kernels.block_shapes import LIBRARY, BlockShape, block_shape
from aim_kernels.choices import Activation
from aim_kernels.registration import OPERATORS, architecture, operator
from aim_kernels.wide_activation import wide_activation_reference


def wide_product_reference(
    y: Tensor, widening: Tensor, bias: Tensor, split: int, activation: Activation, factor: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor]:
    """``hidden`` [rows, M + H] and ``slope`` [rows, M], [0] unless ``keep``, in plain torch."""
    u = F.linear(y, widening, bias)
    if keep:
        return wide_slope.wide_slope_reference(u, split, activation, factor)
    return wide_activation_reference(u, split, activation, factor), _none_kept(u)


def wide_product_backward_reference(
    dout: Tensor, narrowing: Tensor, slope: Tensor, own: Tensor, factor: Tensor | None
) -> Tensor:
    """``du`` [rows, M + H] in plain torch."""
    return wide_slope.wide_slope_backward_reference(dout @ narrowing, slope, own, factor)


def _apart(
    y: Tensor, widening: Tensor, bias: Tensor, split: int, activation: Activation, factor: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor]:
    u = F.linear(y, widening, bias)
    if keep:
        return OPERATORS["wide_slope"](u, split, activation, factor)
    return OPERATORS["wide_activation"](u, split, activation, factor), _none_kept(u)


def _backward_apart(dout: Tensor, narrowing: Tensor, slope: Tensor, own: Tensor, factor: Tensor | None) -> Tensor:
    return OPERATORS["wide_slope_backward"](dout @ narrowing, slope, own, factor)


def _triton(
    y: Tensor, widening: Tensor, bias: Tensor, split: int, activation: Activation, factor: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor]:
    operands = (y, widening, bias, split, activation, factor, keep)
    shape = product_shape("forward", y, widening.shape[0], split)
    return _apart(*operands) if shape == LIBRARY else wide_product_triton.forward(*operands, shape)


def _backward_triton(dout: Tensor, narrowing: Tensor, slope: Tensor, own: Tensor, factor: Tensor | None) -> Tensor:
    shape = product_shape("backward", dout, narrowing.shape[1], slope.shape[1])
    if shape == LIBRARY:
        return wide_slope.multiply(dout @ narrowing, slope, own, factor, True)  # over the largest tensor of a backward
    return wide_product_triton.backward(dout, narrowing, slope, own, factor, shape)


def product_shape(direction: str, x: Tensor, width: int, split: int) -> BlockShape:
    """The tile of a product of ``x`` and of ``width`` columns, or LIBRARY, which is no choice where no tile serves."""
    if not wide_product_triton.fits(x, width, split):
        return LIBRARY
    return block_shape(f"wide_product_{direction}", width, architecture(x), entry="wide_product")


def _none_kept(u: Tensor) -> Tensor:
    return u.new_empty(0, dtype=torch.uint8)


def _fake(
    y: Tensor, widening: Tensor, bias: Tensor, split: int, activation: Activation, factor: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor]:
    hidden = y.new_empty((y.shape[0], widening.shape[0]))
    return hidden, y.new_empty((y.shape[0], split), dtype=torch.uint8) if keep else _none_kept(y)


def _backward_fake(dout: Tensor, narrowing: Tensor, slope: Tensor, own: Tensor, factor: Tensor | None) -> Tensor:
    return dout.new_empty((dout.shape[0], narrowing.shape[1]))


operator(
    "wide_product",
    "(Tensor y, Tensor widening, Tensor bias, int split, str activation, Tensor? factor, bool keep)"
    " -> (Tensor, Tensor)",
    reference=wide_product_reference,
    triton=_triton,
    cpp=_apart,
    fake=_fake,
)
operator(
    "wide_product_backward",
    "(Tensor dout, Tensor narrowing, Tensor slope, Tensor own, Tensor? factor) -> Tensor",
    reference=wide_product_backward_reference,
    triton=_backward_triton,
    cpp=_backward_apart,
    fake=_backward_fake,
)
