"""The dtype of a sub-block's products, and its adapters in it."""

from __future__ import annotations

import torch
from torch import Tensor

from aim_kernels.weights import AdapterWeights


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of the products: autocast's where it is on, else that of the frozen ``weight``."""
    kind = x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``, without asking torch where there is nothing to do: that takes the host ten times as long."""
    return x if x.dtype == dtype else x.to(dtype)


def cast(weights: AdapterWeights, dtype: torch.dtype) -> AdapterWeights:
    """An adapter's tensors in the products' dtype; on a GPU in one launch, unless autograd or a compiler records it."""
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling()
    if weights.w1.is_cuda and weights.w1.dtype != dtype and not plain:
        low = [torch.empty_like(x, dtype=dtype) for x in weights]
        torch._foreach_copy_(low, list(weights))
        return AdapterWeights(*low)
    return AdapterWeights(*(x.to(dtype) for x in weights))
