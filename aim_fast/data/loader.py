"""Batches of clips for training and evaluation, prepared ahead of the step that uses them.

``ClipLoader.batches(epoch, start)`` has no state: batch k of epoch e is a function of (index, seed, e, k) alone. In
training the epoch's order is a permutation drawn from (seed, epoch); in evaluation it is every view of every healthy
clip, in order. A global batch is world·B places long and process r takes places [r·B, (r+1)·B): 2 processes × 4 see
the clips of 1 × 8. The last global batch is filled up with repeats of weight 0, so that every process has equally many
batches and each clip counts once an epoch.

A clip that the index knows as broken, or that turns out broken on the way (its file changed and no longer decodes), is
replaced in training by a healthy clip drawn from (seed, epoch, its number), and has weight 0 in evaluation. Either way
it is counted and named, and the run goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import get_args

import numpy as np
import torch

from aim_fast.cores import default_workers
from aim_fast.data.batch import Batch, DataCounts
from aim_fast.data.choices import ReadOrder
from aim_fast.data.copies.frame_cache import FrameCache
from aim_fast.data.index.rows import Index, Row
from aim_fast.data.index.scan import Prober
from aim_fast.data.own_stream import on_stream, own_stream, used_here
from aim_fast.data.pixels.clip_input import ClipInput, PipelineError
from aim_fast.data.pixels.decoded_boxes import decoded_boxes
from aim_fast.data.pixels.route import Router
from aim_fast.data.plan.augmentation import Augmentation
from aim_fast.data.plan.balanced_order import training_order
from aim_fast.data.plan.clip_plan import ClipPlan, plan_clip, replacement_draw
from aim_fast.data.plan.mirrored import mirrored_classes
from aim_fast.data.plan.sampling import Sampling
from aim_fast.data.plan.shard_order import shard_order
from aim_fast.data.prefetch import Prefetcher
from aim_fast.data.room import Room
from aim_fast.data.video.probe import file_state
from aim_fast.data.video.source import held_bytes, tar_member
from aim_fast.errors import DataError, UsageError

__all__ = ["Batch", "ClipLoader", "DataCounts"]


_DECODING = 2**29  # bytes that files being decoded may hold together
_FRAMES_HELD = 6  # whole frames that decoding one file holds: a decoder's own, and what is converted
_ATTEMPTS = 64  # replacements tried for one place before the data set is given up


@dataclass(slots=True)
class _Place:
    """One place of a batch: the row it is about, and the row that is shown in it."""

    index: int
    view: int
    weight: float
    shown: int
    row: Row
    plan: ClipPlan
    sample: int  # of those that the clip has in the batch
    pixels: Future[list[np.ndarray]] | None = None  # of all of them
    encoded: Future[np.ndarray | None] | None = None


class ClipLoader:
    """Clips of one split as batches.

    Args:
        index: of the split, from ``load_or_build_index``.
        train: draw clips and augment, in shuffled order; else every view of every healthy clip in order.
        batch_size: clips a batch of this process; with an augmentation of n repeats B is n times as many samples.
        img_size: S, side of the square frames.
        num_frames: T; or give ``sampling``, which holds T and how frames are taken.
        augmentation: of training; None for a random resized crop and nothing else.
        seed: of order and augmentation, the same in every process.
        rank, world: this process's number and how many there are.
        workers: decoding threads; None for one a core, divided over the processes of this machine by the caller.
        device: where batches are put.
        decoder: "auto", "dali", "pyav", or a route of ``aim_fast.data.pixels.route``; auto takes DALI for what it
            decodes and PyAV for the rest.
        prefetch: finished batches held ready.
        cache: decoded frames of this index, which are taken instead of the videos of the clips that it holds.
        balanced: of training; every class comes equally often (see ``aim_fast.data.plan.balanced_order``).
        read_order: of training; "shuffled" draws every clip from the whole set, "shards" reads whole shards one after
            another, for disks that are slow at random access (see ``aim_fast.data.plan.shard_order``).

    Raises:
        UsageError: sizes or options that cannot be. DataError: no clip has T frames.
    """

    def __init__(
        self,
        index: Index,
        *,
        train: bool,
        batch_size: int,
        img_size: int = 224,
        num_frames: int | None = None,
        sampling: Sampling | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
        device: str | torch.device = "cpu",
        decoder: str = "auto",
        prefetch: int = 2,
        read_order: str = "shuffled",
        balanced: bool = False,
        cache: FrameCache | None = None,
    ) -> None:
        if sampling is None:
            sampling = Sampling(num_frames or 8)
        if num_frames not in (None, sampling.num_frames):
            raise UsageError(f"num_frames is {num_frames} but the sampling has {sampling.num_frames}: give one of them")
        if batch_size < 1 or img_size < 1 or prefetch < 1 or not 0 <= rank < world:
            raise UsageError(
                f"batch size {batch_size}, image size {img_size}, prefetch {prefetch} must be at least 1 and "
                f"rank {rank} below world {world}"
            )
        if read_order not in get_args(ReadOrder):
            raise UsageError(f"unknown read order {read_order!r}: known are {', '.join(get_args(ReadOrder))}")
        if read_order == "shards" and not all(tar_member(row.path) for row in index.rows):
            raise UsageError(
                f"read order shards needs tar shards, which {index.dataset} has not: make some by aim-fast shard"
            )
        self.index, self.train, self.batch_size, self.img_size = index, train, batch_size, img_size
        self.cache, self.balanced = cache, balanced
        self.sampling, self.seed, self.rank, self.world, self.read_order = sampling, seed, rank, world, read_order
        self.augmentation = (augmentation or Augmentation()) if train else None
        self.repeats = self.augmentation.repeats if self.augmentation else 1
        swaps = self.augmentation is not None and self.augmentation.flip_labels
        self._mirrored = mirrored_classes(index.classes) if swaps else None
        self.device = torch.device(device)
        self.workers = workers or default_workers()
        self.counts = self._counted()
        self._healthy = index.healthy
        self.router = Router(
            index,
            decoder=decoder,
            device=self.device,
            batch_size=batch_size * self.repeats,
            img_size=img_size,
            num_frames=sampling.num_frames,
            augmentation=self.augmentation,
            threads=self.workers,
        )
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        self._prefetcher: Prefetcher[Batch] = Prefetcher(prefetch)
        self._stream = own_stream(self.device)
        self._prober = Prober()
        self._room = Room(_DECODING)
        self._changed: dict[int, tuple[tuple[int, int], Row]] = {}  # rows whose file changed since the scan

    @property
    def clips_per_epoch(self) -> int:
        """Places of an epoch that count: clips in training, views of healthy clips in evaluation, of all processes."""
        return len(self.index) if self.train else len(self._healthy) * self.sampling.views

    @property
    def batches_per_epoch(self) -> int:
        """Batches that every process gets in an epoch."""
        return -(-self.clips_per_epoch // (self.world * self.batch_size))

    @property
    def decoding(self) -> str:
        """Who decodes what, in one line to print."""
        return "; ".join([self.router.description, *([self.cache.description] if self.cache else [])])

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from number ``start`` on; preparing begins with the call.

        One iterator at a time: a new one ends the one before it. Tensors of a batch are the caller's to keep.
        """
        return used_here(self._prefetcher.start(on_stream(self._prepared(epoch, start), self._stream)))

    def replacement(self, index: int, epoch: int, attempt: int = 0) -> int:
        """The healthy row that stands in for row ``index`` in ``epoch``."""
        draw = replacement_draw(len(self._healthy), seed=self.seed, epoch=epoch, index=index, attempt=attempt)
        return int(self._healthy[draw])

    def close(self) -> None:
        """Stop preparing and end the decoding threads and processes."""
        self._prefetcher.stop()
        self._pool.shutdown(cancel_futures=True)
        self.router.close()
        self._prober.stop()

    def _counted(self) -> DataCounts:
        lengths = [self.index.rows[i].frames for i in self.index.healthy]
        if max(lengths, default=0) < self.sampling.num_frames:
            raise DataError(
                f"no {self.index.split} clip has {self.sampling.num_frames} frames, the longest has "
                f"{max(lengths, default=0)}: use --frames {max(lengths, default=1)} or fewer"
            )
        short = sum(length < self.sampling.num_frames for length in lengths)
        return DataCounts(len(self.index.broken), len(self.index.missing), short=short)

    def _places(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row, view, weight) of every place of the epoch, in order; places beyond repeat them with weight 0."""
        if self.train and self.read_order == "shards":
            order, counts = shard_order(self._archives(), self.seed, epoch, self.world, self.batch_size)
            return order, np.zeros_like(order), counts.astype(np.float32)
        if self.train:
            order, times = training_order(self.index, self.balanced, self.seed, epoch)
            drawn = self.augmentation is not None and not self.augmentation.none
            return order, times * self.repeats * drawn, np.ones(len(order), np.float32)
        views, count = self.sampling.views, len(self._healthy)
        return (
            np.repeat(self._healthy, views),
            np.tile(np.arange(views), count),
            np.ones(count * views, np.float32),
        )

    def _archives(self) -> list[str]:
        members = (tar_member(row.path) for row in self.index.rows)
        return [member.archive if member else "" for member in members]

    def _prepared(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        """Batches, made anew from the failing one on whenever a file on the way breaks the pipeline."""
        number = start
        while number < self.batches_per_epoch:
            under_way: deque[list[_Place]] = deque()
            try:
                clips = self._planned(epoch, number, under_way)
                for frames in self.router.run(clips):
                    yield self._batch(under_way.popleft(), frames)
                    number += 1
            except PipelineError as error:
                self._cleared(under_way, error)

    def _planned(self, epoch: int, start: int, under_way: deque[list[_Place]]) -> Iterator[list[ClipInput]]:
        """Inputs of the pipeline, batch by batch; PyAV starts on a batch while the one before it is handed over."""
        order = self._places(epoch)
        numbers = iter(range(start, self.batches_per_epoch))
        coming: deque[list[_Place]] = deque()
        for number in islice(numbers, 1):
            coming.append(self._begin(number, epoch, *order))
        while coming:
            places = coming.popleft()
            for number in islice(numbers, 1):
                coming.append(self._begin(number, epoch, *order))
            clips = [self._input(places, at, epoch) for at in range(len(places))]
            under_way.append(places)
            yield clips

    def _begin(self, number: int, epoch: int, rows: np.ndarray, views: np.ndarray, weights: np.ndarray) -> list[_Place]:
        first, count = (number * self.world + self.rank) * self.batch_size, len(rows)
        places = [(at % count, at < count) for at in range(first, first + self.batch_size)]
        each = [self._samples(int(rows[i]), int(views[i]), float(weights[i]) * new, epoch) for i, new in places]
        return [place for samples in each for place in samples]

    def _samples(self, index: int, view: int, weight: float, epoch: int) -> list[_Place]:
        """The places of a clip, as many as it has samples, of equal weight: with the clip itself, or where that is
        broken with the first of its replacements that is not."""
        row, shown, attempt = self._current(index), index, 0
        while not row.healthy:
            if attempt == _ATTEMPTS:
                raise DataError(
                    f"{_ATTEMPTS} clips in a row fail to decode, the last: {row.path} {row.error}; "
                    "check the disk and index the data set again"
                )
            shown = self.replacement(index, epoch, attempt)
            row = self._current(shown)
            attempt += 1
        plans = [self._plan(row, index, view + sample, epoch) for sample in range(self.repeats)]
        pixels = encoded = None
        if self.cache is not None and shown in self.cache and row is self.index.rows[shown]:
            pixels = self._pool.submit(self._cached_boxes, self.cache, shown, plans)
        elif self.router.takes_pixels(row):
            pixels = self._pool.submit(self._decoded_boxes, row, plans)
        elif tar_member(row.path):
            encoded = self._pool.submit(held_bytes, row.path)
        return [
            _Place(index, view + sample, weight / self.repeats, shown, row, plan, sample, pixels, encoded)
            for sample, plan in enumerate(plans)
        ]

    def _plan(self, row: Row, index: int, view: int, epoch: int) -> ClipPlan:
        plan = plan_clip(
            row.frames,
            *row.display_size,
            sampling=self.sampling,
            augmentation=self.augmentation,
            img_size=self.img_size,
            seed=self.seed,
            epoch=epoch,
            index=index,
            view=view,
        )
        if plan.flip and self._mirrored is not None and self._mirrored[row.label] < 0:
            return replace(plan, flip=False)
        return plan

    def _input(self, places: list[_Place], at: int, epoch: int) -> ClipInput:
        """The pipeline's input for one place, which gets another clip as long as PyAV fails on the one it has."""
        while True:
            place = places[at]
            try:
                pixels = place.pixels.result()[place.sample] if place.pixels is not None else None
                encoded = place.encoded.result() if place.encoded is not None else None
            except DataError as error:
                self._fails(place.shown, replace(place.row, error=str(error)))
                view, weight = place.view - place.sample, place.weight * self.repeats
                places[at] = self._samples(place.index, view, weight, epoch)[place.sample]
                continue
            size = (place.row.height, place.row.width)
            return ClipInput(place.plan, place.row.path, pixels, encoded, size)

    def _current(self, index: int) -> Row:
        """The row as its file is now: a file that changed since the scan is scanned again before it is decoded."""
        row = self.index.rows[index]
        if not row.healthy:
            return row
        state = file_state(row.path)
        if index in self._changed and self._changed[index][0] == state:
            return self._changed[index][1]
        if state != (row.size, row.mtime_ns):
            row = Row.of(row, self._prober.probe(row.path))
            self._changed[index] = (state, row)
            if not row.healthy:
                self._fails(index, row)
        return row

    def _decoded_boxes(self, row: Row, plans: Sequence[ClipPlan]) -> list[np.ndarray]:
        with self._room.taken(_FRAMES_HELD * 3 * row.height * row.width):
            return decoded_boxes(row.path, plans, self.img_size, seek=row.seekable)

    def _cached_boxes(self, cache: FrameCache, index: int, plans: Sequence[ClipPlan]) -> list[np.ndarray]:
        return [cache.box(index, plan, self.img_size) for plan in plans]

    def _fails(self, index: int, row: Row) -> None:
        """Remember that this file, as it is now, is of no use."""
        self._changed[index] = (file_state(row.path), row)
        self.counts.failed += row.path not in self.counts.names
        self.counts.names[row.path] = row.error or ""

    def _cleared(self, under_way: deque[list[_Place]], error: PipelineError) -> None:
        """After a failure: find the files among those under way that are broken now, or leave them all to PyAV."""
        suspects = {place.shown: place.row for places in under_way for place in places if place.pixels is None}
        found = {index: self._prober.probe(row.path) for index, row in suspects.items()}
        for index, row in suspects.items():
            if found[index].error is not None:
                self._fails(index, Row.of(row, found[index]))
        if all(probe.error is None for probe in found.values()):
            if not suspects and under_way:
                raise DataError(f"DALI cannot make a batch: {str(error).splitlines()[0]}")
            for row in suspects.values():
                self.router.avoid(row.path)

    def _batch(self, places: list[_Place], frames: torch.Tensor) -> Batch:
        shown = [place.shown != place.index for place in places]
        if self.train:
            self.counts.replaced += sum(place.weight > 0 for place, other in zip(places, shown) if other)
            weights = [place.weight for place in places]
        else:
            weights = [0.0 if other else place.weight for place, other in zip(places, shown)]
        return Batch(
            frames,
            self._labels(places),
            torch.tensor([place.shown if self.train else place.index for place in places]),
            torch.tensor(weights, device=self.device),
            torch.tensor([place.view for place in places]),
        )

    def _labels(self, places: list[_Place]) -> torch.Tensor:
        labels = self.index.targets(place.row for place in places)
        if self._mirrored is not None:  # of one label a clip
            flipped = np.array([place.plan.flip for place in places])
            labels = np.where(flipped, np.asarray(self._mirrored)[labels], labels)
        return torch.from_numpy(labels).to(self.device)
