"""A share of a split's clips, drawn by seed within each class: for asking what less data would have given."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from aim_fast.data.index.rows import Index

__all__ = ["share_of_classes"]


def share_of_classes(index: Index, share: float, seed: int) -> Index:
    """The index with ``share`` (0 to 1) of each class's clips, rounded, at least one, in the order of the annotations.

    The clips of a class are shuffled by (seed, class) and the first are taken, so that a smaller share of the same seed
    is a part of every larger one.
    """
    if share >= 1:
        return index
    by_class: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(index.rows):
        by_class[row.label].append(number)
    kept: list[int] = []
    for label, numbers in by_class.items():
        order = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), label + 1])).permutation(len(numbers))
        kept += [numbers[place] for place in order[: max(1, round(share * len(numbers)))]]
    return replace(index, rows=[index.rows[number] for number in sorted(kept)])
