"""An adapter as the products of its sub-block read it, formed once a pass.

    w1 = W1,     b1        or, of one that reads an output projection Wo a + bo:   w1 = W1 Wo,        b1 + W1 bo
                           of one that reads a norm γ∘x̂ + β that gives x̂ alone:   w1 = W1·diag(γ),   b1 + W1 β
    w2 = s·W2,   s·b2

D is the width, H the hidden units, s a scale. An adapter that reads an output projection swallows it:
W1(Wo a + bo) + b1 = W1 Wo a + (W1 bo + b1); and so it does with a norm's affine (:mod:`aim_kernels.folded_norms`).
All is differentiable in W1, b1, W2, b2: a sub-block gives the gradients of what it reads, and autograd does the rest.
Those of many blocks are formed at once: :mod:`aim_kernels.stacked_adapters`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from aim_kernels.weights import AdapterWeights, FormedAdapter, NormWeights


class AdapterUse(NamedTuple):
    """An adapter, and what stands around it where it is used."""

    weights: AdapterWeights
    reads: tuple[Tensor, Tensor] | None = None  # [D, D], [D] the output projection that it swallows
    beside: Tensor | None = None  # [D] a bias of the product that its second one is added to
    scale: float = 1.0
    norm: NormWeights | None = None  # whose affine it takes over


@overload
def formed_of(weights: AdapterWeights | FormedAdapter, dtype: torch.dtype, **around: Any) -> FormedAdapter: ...
@overload
def formed_of(weights: None, dtype: torch.dtype, **around: Any) -> None: ...
def formed_of(
    weights: AdapterWeights | FormedAdapter | None, dtype: torch.dtype, **around: Any
) -> FormedAdapter | None:
    """An adapter with what stands ``around`` it, see :class:`AdapterUse`; one that is formed already as it is."""
    if weights is None or isinstance(weights, FormedAdapter):
        return weights
    return form(AdapterUse(weights, **around), dtype)


@overload
def plain(weights: AdapterWeights | FormedAdapter) -> AdapterWeights: ...
@overload
def plain(weights: None) -> None: ...
def plain(weights: AdapterWeights | FormedAdapter | None) -> AdapterWeights | None:
    """An adapter as it is. Raises ValueError for one that is formed, which a frozen trunk's products alone can read."""
    if isinstance(weights, FormedAdapter):
        raise ValueError("a formed adapter serves the fused sub-blocks of a frozen trunk: give its own weights")
    return weights


def fold_projection(weights: AdapterWeights, reads: tuple[Tensor, Tensor], w1: Tensor) -> tuple[Tensor, Tensor]:
    """W1 Wo [H, D] in the dtype of ``w1``, which is W1 in it, and b1 + W1 bo [H] in that of b1."""
    return w1 @ reads[0].to(w1.dtype), _shifted(weights, reads[1])


def _shifted(weights: AdapterWeights, shift: Tensor) -> Tensor:
    """b1 + W1 shift [H], of a ``shift`` [D], in the dtype of b1."""
    with torch.autocast("cuda", enabled=False):  # on a CPU it leaves these alone
        return torch.addmv(weights.b1, weights.w1, shift.to(weights.w1.dtype))


def form(use: AdapterUse, dtype: torch.dtype) -> FormedAdapter:
    """An adapter, its products in ``dtype``."""
    (w1, b1, w2, b2), scale = use.weights, use.scale
    if use.norm is not None and use.norm.bias is not None:
        w1, b1 = w1 * use.norm.weight, _shifted(use.weights, use.norm.bias)
    low = w1.to(dtype)
    if use.reads is not None:
        low, b1 = fold_projection(use.weights, use.reads, low)
    if scale != 1.0:
        w2, b2 = w2 * scale, b2 * scale
    b2_beside = b2.detach() if use.beside is None else b2.detach() + use.beside.to(b2.dtype)
    return FormedAdapter(low, b1, w2.to(dtype), b2, b1.detach().to(dtype), b2_beside.to(dtype))
