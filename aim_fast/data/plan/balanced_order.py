"""The training order of an epoch: every clip once, or every class equally often. A function of (seed, epoch).

Balanced, each class that has clips gets as many of the epoch's places, and fills them with its own clips, all of them
before one comes again (class-aware sampling: Shen, Lin and Huang, ECCV 2016). A clip of several classes comes for each.
"""

from __future__ import annotations

import numpy as np

from aim_fast.data.index.rows import Index
from aim_fast.data.plan.clip_plan import epoch_order, order_generator

__all__ = ["balanced_order", "training_order"]


def training_order(index: Index, balanced: bool, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, how often it came before in the epoch), int64 [clips] both, of every place of an epoch in order."""
    if balanced:
        order = balanced_order(index.members, len(index), seed, epoch)
        return order, _times_before(order)
    order = epoch_order(len(index), seed, epoch)
    return order, np.zeros_like(order)


def balanced_order(members: list[np.ndarray], count: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [count]: rows, of each class that has ``members`` as often as of the others, to one."""
    draw = order_generator(seed, epoch)
    present = [rows for rows in members if len(rows)]
    places = np.full(len(present), count // len(present))
    places[draw.permutation(len(present))[: count % len(present)]] += 1
    chosen = []
    for rows, wanted in zip(present, places):
        rounds = [draw.permutation(rows) for _ in range(-(-wanted // len(rows)))]
        chosen += [np.concatenate(rounds)[:wanted]] if rounds else []
    return draw.permutation(np.concatenate(chosen))


def _times_before(order: np.ndarray) -> np.ndarray:
    """Of each place, how often its row came before."""
    by_row = np.argsort(order, kind="stable")
    ranks = np.arange(len(order))
    begins = np.diff(order[by_row], prepend=-1) != 0
    times = np.empty_like(order)
    times[by_row] = ranks - np.maximum.accumulate(np.where(begins, ranks, 0))
    return times
