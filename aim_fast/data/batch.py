"""A batch of clips as a step takes it, and the counts of what was wrong with the data on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["Batch", "DataCounts"]


@dataclass(slots=True)
class Batch:
    """One process's share of a global batch.

    Attributes:
        frames: uint8 [B, T, S, S, 3] RGB, on the loader's device, safe to keep.
        labels: int64 [B], on the device; -1 where the split has no labels. Of a mirrored clip with ``flip_labels`` its
            mirrored class. Where clips may have several, float32 [B, classes] of 0 and 1.
        indices: int64 [B], row of the index that each place is about (of the clip that is shown, in training).
        weights: float32 [B], on the device; 0 for padding and for clips that an evaluation must leave out, and an nth
            for each of n samples of a training clip.
        views: int64 [B], evaluation view, or number of the sample of its clip in the epoch, in training.
    """

    frames: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    weights: torch.Tensor
    views: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(slots=True)
class DataCounts:
    """What was wrong with the data, so far.

    Attributes:
        broken, missing: clips of the split that the index cannot use.
        failed: clips that the index could use and that failed since.
        replaced: places of training batches that were given to another clip.
        short: healthy clips with fewer frames than T, which repeat frames.
        names: path -> reason, of the failed ones.
    """

    broken: int = 0
    missing: int = 0
    failed: int = 0
    replaced: int = 0
    short: int = 0
    names: dict[str, str] = field(default_factory=dict)
