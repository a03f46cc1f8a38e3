"""An adapter that reads an attention's output projection swallows it: their product, formed once per step.

    W1(Wo a + bo) + b1 = W' a + b',   W' = W1 Wo,   b' = W1 bo + b1

The gradients of the trained pair are, exactly, dW1 = dW' Woᵀ + db' boᵀ and db1 = db'.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aim_kernels.column_sum import column_sum
from aim_kernels.weights import AdapterGradients, AdapterNeeds, AdapterWeights, AttentionWeights
from aim_kernels.wide_activation import gelu


def fold_projection(adapter: AdapterWeights, attention: AttentionWeights, w1: Tensor) -> tuple[Tensor, Tensor]:
    """W' [H, D] and b' [H] in the products' dtype, in which ``w1`` is the adapter's. Differentiable in its tensors."""
    with torch.autocast("cuda", enabled=False):  # on a CPU it leaves addmv alone
        bias = torch.addmv(adapter.b1, adapter.w1, attention.out_bias.to(adapter.w1.dtype))
    return w1 @ attention.out_weight.to(w1.dtype), bias.to(w1.dtype)


def folded_gradients(
    adapter: AdapterWeights,
    attention: AttentionWeights,
    needs: AdapterNeeds,
    a: Tensor,
    u: Tensor,
    du: Tensor,
    dout: Tensor,
    db2: Tensor | None,
) -> AdapterGradients:
    """Gradients of ``W2·gelu(W' a + b') + b2`` in the parameters' own dtype.

    ``a`` [rows, D]; ``u`` [rows, H] before the activation and ``du`` its gradient; ``dout`` [rows, D] that of the
    result and ``db2`` [D] its sum, which came with it.
    """
    dw1 = db1 = dw2 = None
    if needs.w2:
        dw2 = (dout.t() @ gelu(u)).to(adapter.w2.dtype)
    if needs.b1 or needs.w1:
        db1 = column_sum(du, adapter.b1.dtype)
    if needs.w1 and db1 is not None:
        dtype = adapter.w1.dtype
        dw1 = (du.t() @ a @ attention.out_weight.to(du.dtype).t()).to(dtype)
        dw1.addr_(db1.to(dtype), attention.out_bias.to(dtype))
    return AdapterGradients(dw1, db1, dw2, None if db2 is None else db2.to(adapter.b2.dtype))
