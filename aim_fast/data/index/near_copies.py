"""Clips that show the same: re-encoded, rescaled or cut out of one another, found by the hashes of their frames.

Two hashes of 63 bits that differ in at most 3 agree in two of five blocks of bits, so that sorting by each of the ten
pairs of blocks brings them beside each other: the time is that of ten sorts, n log n, and the pairs found so are then
compared frame by frame. A moment that very many clips share (a title, a test card) is compared with its next ones
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

__all__ = ["NearCopy", "near_copies"]

_BLOCKS = (13, 13, 13, 12, 12)  # bits of the blocks, 63 in all
_NEXT = 32  # of the hashes that share two blocks, so many following ones are looked at
_LIKE = 10  # bits in which two frames of one moment may differ
_SHARE = 0.6  # of the frames of the clip with fewer


@dataclass(frozen=True, slots=True)
class NearCopy:
    """Clips ``first`` and ``second``, by their places: the share of frames that both have, and by how many bits the
    frames of the one with fewer differ from the nearest of the other, at their median."""

    first: int
    second: int
    share: float
    distance: float


def near_copies(hashes: Sequence[np.ndarray]) -> list[NearCopy]:
    """The pairs of clips that show the same, those that are nearest first; ``hashes``: uint64 [n] of each clip."""
    lengths = np.array([len(one) for one in hashes], np.int64)
    if lengths.sum() == 0:
        return []
    flat, owner = np.concatenate([np.asarray(one, np.uint64) for one in hashes]), np.repeat(range(len(hashes)), lengths)
    candidates = np.unique(np.concatenate([_beside(key, flat, owner, len(hashes)) for key in _keys(flat)]))
    pairs = zip(*(part.tolist() for part in np.divmod(candidates, len(hashes))))
    found = [copy for first, second in pairs if (copy := _compared(first, second, hashes)) is not None]
    return sorted(found, key=lambda copy: (-copy.share, copy.distance, copy.first, copy.second))


def _keys(flat: np.ndarray) -> list[np.ndarray]:
    """For each pair of blocks, the bits of both in every hash."""
    starts = np.cumsum((0, *_BLOCKS))[:-1].tolist()
    blocks = [flat >> np.uint64(start) & np.uint64((1 << bits) - 1) for start, bits in zip(starts, _BLOCKS)]
    return [blocks[one] << np.uint64(13) | blocks[other] for one, other in combinations(range(len(_BLOCKS)), 2)]


def _beside(key: np.ndarray, flat: np.ndarray, owner: np.ndarray, clips: int) -> np.ndarray:
    """first * clips + second of clips, first < second, with hashes of one key that are among the next of each other."""
    order = np.lexsort((flat, key))
    keys, owners = key[order], owner[order]
    found = [np.empty(0, np.int64)]
    for step in range(1, min(_NEXT, len(keys) - 1) + 1):
        same = keys[:-step] == keys[step:]
        if not same.any():
            break
        one, other = owners[:-step][same], owners[step:][same]
        codes = np.minimum(one, other) * clips + np.maximum(one, other)
        found.append(np.unique(codes[one != other]))
    return np.concatenate(found)


def _compared(first: int, second: int, hashes: Sequence[np.ndarray]) -> NearCopy | None:
    few, many = sorted((hashes[first], hashes[second]), key=len)
    nearest = np.bitwise_count(few[:, None] ^ many[None]).min(1)
    share = float((nearest <= _LIKE).mean())
    return NearCopy(first, second, share, float(np.median(nearest))) if share >= _SHARE else None
