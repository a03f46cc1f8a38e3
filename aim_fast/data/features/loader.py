"""Batches of stored features, in the order and with the weights that :class:`ClipLoader` gives clips.

In training a clip's view is drawn from (seed, epoch, its number) among the stored ones; in evaluation all of them are
scored. A clip without features is replaced in training by the clip that would replace it among videos, and left out of
evaluation.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import torch

from aim_fast.data.features.store import FeatureStore
from aim_fast.data.index.rows import Index
from aim_fast.data.loader import Batch, DataCounts
from aim_fast.data.own_stream import on_stream, own_stream, used_here
from aim_fast.data.plan.balanced_order import training_order
from aim_fast.data.plan.clip_plan import replacement_draw, stored_view_draw
from aim_fast.data.prefetch import Prefetcher
from aim_fast.errors import DataError

__all__ = ["FeatureLoader"]


class FeatureLoader:
    """Features of the clips of one index, from a store that has them all, as batches.

    ``Batch.frames`` holds features ``[B, ...]`` in the store's dtype; everything else is as in ``ClipLoader``, of which
    it takes the arguments. Raises DataError where the store lacks a clip, or no clip has features.
    """

    def __init__(
        self,
        index: Index,
        store: FeatureStore,
        *,
        train: bool,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        balanced: bool = False,
        device: str | torch.device = "cpu",
        prefetch: int = 2,
    ) -> None:
        self.index, self.store, self.train, self.batch_size = index, store, train, batch_size
        self.balanced = balanced
        self.seed, self.rank, self.world, self.device = seed, rank, world, torch.device(device)
        self._positions = store.positions(index)
        self._usable = np.flatnonzero(self._positions >= 0)
        if not len(self._usable):
            raise DataError(f"{store.folder}: no clip of {index.dataset} {index.split} has features")
        self.counts = DataCounts(len(index.broken), len(index.missing))
        self.counts.failed = len(index.healthy) - len(self._usable)
        self._prefetcher: Prefetcher[Batch] = Prefetcher(prefetch)
        self._stream = own_stream(self.device)

    @property
    def clips_per_epoch(self) -> int:
        """Places of an epoch that count: clips in training, stored views in evaluation, of all processes."""
        return len(self.index) if self.train else len(self._usable) * self.store.views

    @property
    def batches_per_epoch(self) -> int:
        """Batches that every process gets in an epoch."""
        return -(-self.clips_per_epoch // (self.world * self.batch_size))

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from number ``start`` on; reading begins with the call."""
        return used_here(self._prefetcher.start(on_stream(self._read(epoch, start), self._stream)))

    def close(self) -> None:
        """Stop reading."""
        self._prefetcher.stop()

    def _read(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        if self.train:
            rows, times = training_order(self.index, self.balanced, self.seed, epoch)
        else:
            rows = np.repeat(self._usable, self.store.views)
            times = np.zeros_like(rows)
        for number in range(start, self.batches_per_epoch):
            first = (number * self.world + self.rank) * self.batch_size
            at = np.arange(first, first + self.batch_size)
            places = at % len(rows)
            yield self._batch(rows[places].tolist(), times[places].tolist(), at, epoch)

    def _batch(self, rows: list[int], times: list[int], at: np.ndarray, epoch: int) -> Batch:
        views = self.store.views
        if self.train:
            shown = [self._shown(row, epoch) for row in rows]
            self.counts.replaced += sum(row != other for row, other in zip(rows, shown))
            draws = zip(rows, times)
            chosen = [stored_view_draw(views, seed=self.seed, epoch=epoch, index=row, time=n) for row, n in draws]
        else:
            shown, chosen = rows, (at % self.clips_per_epoch % views).tolist()
        features = self.store.read(self._positions[shown].tolist(), chosen)
        if self.device.type == "cuda":
            features = features.pin_memory()
        return Batch(
            features.to(self.device, non_blocking=True),
            torch.from_numpy(self.index.targets(self.index.rows[row] for row in shown)).to(self.device),
            torch.tensor(shown),
            torch.tensor((at < self.clips_per_epoch).astype(np.float32), device=self.device),
            torch.tensor(times if self.train else chosen),
        )

    def _shown(self, row: int, epoch: int) -> int:
        if self._positions[row] >= 0:
            return row
        return int(self._usable[replacement_draw(len(self._usable), seed=self.seed, epoch=epoch, index=row)])
