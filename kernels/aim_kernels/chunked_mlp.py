"""The widened MLP over chunks of rows, where none of its hidden state is kept: a chunk of it is there at a time.

The hidden state is the largest tensor of a training step, M + H columns a token before its activations and as many
after. Shapes and mathematics are those of :mod:`aim_kernels.widened_mlp`; sums over rows are those of the chunks, added
in order. A compiler traces one chunk, since it would write out every one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aim_kernels.weights import AdapterGradients, AdapterNeeds
from aim_kernels.widened_mlp import Hidden, WidenedMLP, activated, contract, expand, stack_weights, wide_gradients

ROWS = 8192  # of a chunk at most: products of so many rows fill any card


def branch_in_chunks(wide: WidenedMLP, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """What :func:`~aim_kernels.widened_mlp.contract` gives, from ``y`` [rows, D]."""
    wide, branches, dropped_bias = stack_weights(wide), [], None
    for rows in _chunks(y):
        part = _part(wide, rows)
        branch, dropped_bias = contract(part, activated(part, y[rows], False)[0], y[rows])
        branches.append(branch)
    return _joined(branches), dropped_bias


def gradients_in_chunks(
    wide: WidenedMLP, branch: Tensor, sums: Tensor | None, y: Tensor, needs_y: bool, needs: AdapterNeeds
) -> tuple[Tensor | None, AdapterGradients]:
    """What :func:`~aim_kernels.widened_mlp.wide_gradients` gives, from ``y`` [rows, D] in place of a hidden state."""
    wide, chunks = stack_weights(wide), _chunks(y)
    if len(chunks) == 1:
        return wide_gradients(wide, branch, None, sums, y, Hidden(expand(wide, y)), needs_y, needs)
    pieces: list[Tensor | None] = []
    total = gradients = AdapterGradients()
    for rows in chunks:
        part = _part(wide, rows)
        first = None if pieces else sums  # they are of all rows
        hidden = Hidden(expand(part, y[rows]))
        dy, gradients = wide_gradients(part, branch[rows], None, first, y[rows], hidden, needs_y, needs)
        pieces.append(dy)
        total = AdapterGradients(*map(_sum, total, gradients))
    narrowed = (x if x is None or like is None else x.to(like.dtype) for x, like in zip(total, gradients))
    return None if pieces[0] is None else torch.cat([dy for dy in pieces if dy is not None]), AdapterGradients(
        *narrowed
    )


def _chunks(y: Tensor) -> list[slice]:
    if torch.compiler.is_compiling() or len(y) <= ROWS:
        return [slice(None)]
    size = -(-len(y) // -(-len(y) // ROWS))
    return [slice(first, first + size) for first in range(0, len(y), size)]


def _part(wide: WidenedMLP, rows: slice) -> WidenedMLP:
    return wide if wide.factor is None else wide._replace(factor=wide.factor[rows])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """In float32 at least."""
    if part is None:
        return total
    part = part.to(torch.promote_types(part.dtype, torch.float32))
    return part if total is None else total.add_(part)
