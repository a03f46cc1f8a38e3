"""The dtype of a sub-block's products."""

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


def cast(weights: AdapterWeights, dtype: torch.dtype) -> AdapterWeights:
    """A copy of an adapter's tensors in the products' dtype."""
    return AdapterWeights(*(x.to(dtype) for x in weights))
