"""The dtypes of a sub-block: that of its products, and of what it keeps of the residual stream."""

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


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` as it is kept for backward: in the products' dtype where that is the narrower one.

    Its uses are the layer norm's input gradient and running the norm again, whose results are rounded to ``dtype``.
    """
    return x.to(dtype) if dtype.itemsize < x.dtype.itemsize else x


def cast(weights: AdapterWeights, dtype: torch.dtype) -> AdapterWeights:
    """A copy of an adapter's tensors in the products' dtype."""
    return AdapterWeights(*(x.to(dtype) for x in weights))
