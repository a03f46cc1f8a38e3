"""Keeping torch.compile from keeping what a backward means to form again.

A compiled step's forward and backward are one graph before they are cut apart, and equal nodes in it become one: what
backward forms again by the forward's own operators and operands is found there, and is then kept. So a backward forms
it from operands that a compiler cannot take for the forward's: copies that depend on the gradient. Those copied are
small, a norm's weight or an adapter; what grows with the batch is never copied. Source: torch._functorch's partitioner
(``fx_graph_cse`` and ``min_cut_rematerialization_partition``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aim_kernels.registration import operator


def again(weights: Sequence[Tensor | None], count: int, g: Tensor) -> list[Tensor | None]:
    """The tensors; where a compiler traces, the first ``count`` as copies that exist once the gradient ``g`` does."""
    if not torch.compiler.is_compiling():
        return list(weights)
    copies = [None if x is None else torch.ops.aim.again(x, g) for x in weights[:count]]
    return [*copies, *weights[count:]]


def _copy(x: Tensor, after: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _fake(x: Tensor, after: Tensor) -> Tensor:
    return x.new_empty(x.shape)


operator("again", "(Tensor x, Tensor after) -> Tensor", reference=_copy, fake=_fake)
