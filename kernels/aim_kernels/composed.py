"""Products of a frozen and a trainable matrix, formed once per step, and what the sub-blocks share around them.

An adapter that reads an attention's output projection swallows it: W1(Wo a + bo) + b1 = (W1 Wo) a + (W1 bo + b1). With
W' = W1 Wo the gradients of the trained pair are, exactly,

    dW1 = dW' Woᵀ + db' boᵀ,   db1 = db'
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from aim_kernels.adaptation import AdapterWeights
from aim_kernels.choices import Memory
from aim_kernels.residual import column_sum


class Needs(NamedTuple):
    """Which of an adapter's four tensors want a gradient."""

    w1: bool
    b1: bool
    w2: bool
    b2: bool


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of the products: autocast's where it is on, else that of the frozen ``weight``."""
    kind = x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def check_memory(memory: str) -> None:
    """Raises ValueError unless ``memory`` is one of the three words."""
    if memory not in get_args(Memory):
        raise ValueError(f"memory {memory!r} is none of {', '.join(get_args(Memory))}")


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` as it is kept for backward: in the products' dtype where that is the narrower one.

    Its uses are the layer norm's input gradient and running the norm again, whose results are rounded to ``dtype``.
    """
    return x.to(dtype) if dtype.itemsize < x.dtype.itemsize else x


def to_dtype(weights: AdapterWeights, dtype: torch.dtype) -> AdapterWeights:
    """A copy of an adapter's tensors in the products' dtype."""
    return AdapterWeights(*(x.to(dtype) for x in weights))


def compose(adapter: AdapterWeights, out_weight: Tensor, out_bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``W1 Wo`` [H, D] and ``W1 bo + b1`` [H] in ``dtype``, from the adapter's own tensors and the trunk's."""
    bias = torch.addmv(adapter.b1, adapter.w1, out_bias.to(adapter.w1.dtype))
    return adapter.w1.to(dtype) @ out_weight, bias.to(dtype)


def row_factor(drop: Tensor | None, x: Tensor) -> Tensor | None:
    """Droppath's factor of every token of ``x`` [B, T, N, D] as [B·T·N] float32 (float64 with a float64 stream)."""
    if drop is None:
        return None
    return drop.to(torch.promote_types(x.dtype, torch.float32)).expand(*x.shape[:-1], 1).reshape(-1)


def decompose(d_composed: Tensor, d_bias: Tensor, out_weight: Tensor, out_bias: Tensor, dtype: torch.dtype) -> Tensor:
    """``dW1`` in ``dtype`` from ``dW'`` [H, D] and ``db'`` [H]."""
    return (d_composed @ out_weight.t()).to(dtype).addr_(d_bias.to(dtype), out_bias.to(dtype))


def adapter_gradients(
    weights: AdapterWeights, needs: Needs, source: Tensor, du: Tensor, hidden: Tensor, dout: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of ``W2·gelu(W1·source + b1) + b2`` in the parameters' own dtype: dw1, db1, dw2, db2 or None.

    ``source`` [M, D] is the adapter's input, ``du`` [M, H] the gradient before its activation, ``hidden`` [M, H] the
    value after it, ``dout`` [M, D] the gradient of its output.
    """
    return (
        (du.t() @ source).to(weights.w1.dtype) if needs.w1 else None,
        column_sum(du, weights.b1.dtype) if needs.b1 else None,
        (dout.t() @ hidden).to(weights.w2.dtype) if needs.w2 else None,
        column_sum(dout, weights.b2.dtype) if needs.b2 else None,
    )
