"""The order in which training reads tar shards from end to end, instead of drawing every clip from the whole set.

The shards are permuted by (seed, epoch); the clips that they hold, one shard after the other, are divided into as many
equal parts as there are processes, so that a process reads few shards and reads them whole. Within a part clips are
permuted in windows: what one window holds is close together on the disk. All of it is a pure function of (seed, epoch,
number of processes), so a run that is resumed sees the same clips; other than in the shuffled order they depend on the
number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aim_fast.data.plan.clip_plan import epoch_order

__all__ = ["WINDOW", "shard_order"]

WINDOW = 2048  # clips that are permuted together


def shard_order(
    archives: Sequence[str], seed: int, epoch: int, world: int, batch_size: int, window: int = WINDOW
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of the epoch's places, and whether each place counts.

    Place (k·world + r)·B + i is place i of batch k of process r, as everywhere. Where a process has fewer clips than
    places, its clips are repeated without counting.

    Args:
        archives: the shard of every row.
        batch_size: B, of one process.

    Returns:
        int64 [batches · world · B] row numbers and bool [batches · world · B].
    """
    names = sorted(set(archives))
    number = {name: i for i, name in enumerate(names)}
    of_shard: list[list[int]] = [[] for _ in names]
    for row, archive in enumerate(archives):
        of_shard[number[archive]].append(row)
    rows = np.concatenate([of_shard[shard] for shard in epoch_order(len(names), seed, epoch)]).astype(np.int64)
    batches = -(-len(rows) // (world * batch_size))
    order = np.empty((batches, world, batch_size), np.int64)
    counts = np.empty((batches, world, batch_size), bool)
    for rank in range(world):
        part = rows[rank * len(rows) // world : (rank + 1) * len(rows) // world].copy()
        for at in range(0, len(part), window):
            length = len(part[at : at + window])
            # a stream of its own for every window, apart from those of the epochs' own orders
            part[at : at + length] = part[at : at + length][epoch_order(length, seed + 1 + rank * 2**20 + at, epoch)]
        places = np.arange(batches * batch_size)
        source = part if len(part) else rows
        order[:, rank] = source[places % len(source)].reshape(batches, batch_size)
        counts[:, rank] = (places < len(part)).reshape(batches, batch_size)
    return order.reshape(-1), counts.reshape(-1)
