"""Bytes that a forward pass keeps for backward, weights not counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps while ``forward()`` runs ``model``.

    Not counted are parameters, and tensors of a parameter's shape or its transpose: autocast's copies of the weights.
    """
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {shape for parameter in model.parameters() for shape in (parameter.shape, parameter.shape[::-1])}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in owned and x.shape not in shapes:
            kept[storage.data_ptr()] = storage.nbytes()
        return x.detach()  # with its graph it would hold itself, for good

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = forward()
    total = sum(kept.values())
    del out
    return total
