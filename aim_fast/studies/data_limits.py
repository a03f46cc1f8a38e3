"""What limits training on a data set here: reading its files, decoding them, or the step; and what would help.

Each part is measured alone on the data set's own clips: every decoder that gives the right frames, reading whole files
with the page cache dropped, and where a model is named its training step on clips in memory. The slowest part sets the
pace. On a CPU decoding and the step share the cores, so that together they are slower than the slower one.
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import torch

from aim_fast.cores import default_workers
from aim_fast.data import Batch, Index
from aim_fast.data.copies.frame_cache import JPEG_SHARE, raw_bytes
from aim_fast.data.decoder_choice import measure_decoders
from aim_fast.data.pixels.route import routes
from aim_fast.data.plan.clip_plan import epoch_order
from aim_fast.data.video.frame_folder import CODEC as PICTURES
from aim_fast.data.video.source import tar_member
from aim_fast.data.video.stream import opened
from aim_fast.files import free_bytes
from aim_fast.models.video_model import VideoModel
from aim_fast.studies.scale import Needs, Parts, needs
from aim_fast.training.clips import augmentation_of, open_split, sampling_of
from aim_fast.training.clock import Clock
from aim_fast.training.devices import Place, single_place
from aim_fast.training.first_start import recall_kernels
from aim_fast.training.optimization import Optimization
from aim_fast.training.progress import RunProgress
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_model import build_model
from aim_fast.training.steps import Steps

_READ_FILES = 64
_READ_SECONDS = 2.0
_GOP_FILES = 8
_STEPS = 3
_LONG_GOP = 24  # frames between key frames, above which a transcode to 12 decodes clearly less
_CACHED = 256  # pixels of the short side of cached frames, for crops of 224
_LARGE = 320  # pixels of the short side, above which decoding pays for what the crop throws away


@dataclass
class DataLimits:
    """Figures of one data set on one machine.

    Attributes:
        clips, mean_kib: usable training clips and their mean size.
        decode: clips a second by route. threads: that decoded.
        read_mib, read_clips: MiB and clips a second from the disk, files that were dropped from memory first.
        step: clips a second of the training step alone, None without a model.
        gop, short_side: medians of the sample, frames and pixels; gop 0 where the clips are pictures.
        limit: "decoding", "reading" or "the step"; without a model of the first two.
        data_wait: share of the time, 0 to 1, that the step would wait for clips; None without a model.
        advice: what would help, one line each.
        needs: of as many GPUs as were asked for, at the step's rate or a given one; None where none were.
    """

    clips: int
    mean_kib: float
    decode: dict[str, float]
    threads: int
    read_mib: float
    read_clips: float
    step: float | None
    gop: int
    short_side: int
    limit: str = ""
    data_wait: float | None = None
    advice: list[str] = field(default_factory=list)
    needs: Needs | None = None

    @property
    def lines(self) -> dict[str, str]:
        """Name and text of each row to print."""
        rates = ", ".join(f"{name} {rate:.1f}" for name, rate in self.decode.items())
        rows = {
            "clips": f"{self.clips} for training, {self.mean_kib:.0f} KiB each, short side {self.short_side}"
            + (f", a key frame every {self.gop}" if self.gop else ""),
            "decode, clips/s": f"{rates} on {self.threads} threads",
            "read": f"{self.read_mib:.0f} MiB/s, {self.read_clips:.0f} clips/s",
            "step, clips/s": "not measured: name a --model" if self.step is None else f"{self.step:.1f}",
            "limited by": self.limit
            + ("" if self.data_wait is None else f"; the step would wait {100 * self.data_wait:.0f} % of the time"),
        }
        rows |= {f"advice {number}": line for number, line in enumerate(self.advice, start=1)}
        return rows | (self.needs.lines if self.needs else {})


def measure_limits(recipe: Recipe, with_step: bool, gpus: int | None = None, rate: float | None = None) -> DataLimits:
    """Measure a recipe's training split; the split is scanned first where it is new.

    ``gpus``: also what so many GPUs need, at ``rate`` clips/s each, or at that of the step measured here; of a model.

    Raises UsageError and DataError as training does.
    """
    place = single_place(recipe.run.device, recipe.run.precision)
    index = open_split(recipe, "train", place, RunProgress(quiet=True))
    threads = place.decoding_threads(recipe.data.workers)
    model, step = None, None
    if with_step:
        trained = build_model(recipe.replace(weights="random"), index.classes, place)
        recall_kernels(trained, place)
        model = trained.model
        step = _step_rate(model, recipe, place, len(index.classes))
    rows = [index.rows[i] for i in index.healthy]
    size = statistics.fmean(row.size for row in rows)
    read = _read_rate(index, threads)
    decode = measure_decoders(
        index,
        routes(index, place.device, threads),
        sampling=sampling_of(recipe),
        img_size=recipe.model.img_size or (model.img_size if model is not None else 224),
        batch_size=recipe.optimisation.batch_size,
        threads=threads,
        device=place.device,
        augmentation=augmentation_of(recipe),
    )
    found = DataLimits(
        clips=len(rows),
        mean_kib=size / 2**10,
        decode={name: round(rate, 2) for name, rate in decode.items()},
        threads=threads,
        read_mib=read / 2**20,
        read_clips=read / size,
        step=step,
        gop=_gop(index),
        short_side=int(statistics.median(min(row.display_size) for row in rows)),
    )
    judge(found, index)
    if gpus and model is not None:
        best = max(found.decode, key=lambda name: found.decode[name])
        parts = Parts(
            rate=rate or found.step or 0.0,
            batch=max(recipe.optimisation.batch_size, (recipe.optimisation.total_batch_size or 0) / gpus),
            cpu_seconds=0.0 if best == "gpu" else threads / found.decode[best],
            file_bytes=size,
            clip_bytes=3.0 * recipe.data.frames * model.img_size**2,
            trained=sum(tensor.numel() for _, tensor in model.trainable_parameters()),
        )
        found.needs = needs(gpus, parts)
    return found


def judge(found: DataLimits, index: Index) -> None:
    """Names the limit and what would help."""
    parts = {"decoding": max(found.decode.values()), "reading": found.read_clips}
    data = min(parts.values())
    found.limit = min(parts, key=lambda name: parts[name])
    if found.step is not None:
        found.data_wait = max(0.0, 1 - data / found.step)
        if found.step <= data:
            found.limit = "the step"
            found.advice = ["the data path keeps up: nothing to do for it"]
            return
    if found.limit == "reading":
        if not all(tar_member(row.path) for row in index.rows):
            found.advice.append("aim-fast shard writes tars, which --read-order shards reads from end to end")
        found.advice.append("a faster disk, or memory that holds the data set, which the system then reads once")
        return
    reasons = []
    if found.gop > _LONG_GOP:
        reasons.append(f"a key frame every {found.gop} frames makes {found.gop // 2} be decoded for one")
    if found.short_side > _LARGE:
        reasons.append(f"a short side of {found.short_side} is shrunk anyway")
    if reasons:
        found.advice.append(f"aim-fast transcode: {' and '.join(reasons)}")
    raw = sum(raw_bytes(index.rows[i], _CACHED) for i in index.healthy) / 2**30
    jpeg = JPEG_SHARE * raw
    free = free_bytes(Path(index.root)) / 2**30
    room = f"--cache frames needs {raw:.1f} GiB raw, {jpeg:.1f} GiB as jpeg, for training clips; {free:.0f} are free"
    if jpeg < free:
        found.advice.append(room if raw < free else f"{room}: --cache-format jpeg")
    cores = default_workers()
    if found.threads < cores:
        found.advice.append(f"--workers {cores}: {found.threads} of {cores} cores decode")
    best = max(found.decode, key=lambda name: found.decode[name])
    if best not in (next(iter(found.decode)), "shared"):
        found.advice.append(f"{best} is the fastest decoder here: --decoder auto finds it in training")


def _step_rate(model: VideoModel, recipe: Recipe, place: Place, num_classes: int) -> float:
    """Clips a second of training steps on one random batch in the device's memory."""
    model.train()
    optimization = Optimization(model, recipe.replace(total_batch_size=None, accumulate=1), place, num_classes)
    count, size = recipe.optimisation.batch_size, model.img_size
    batch = Batch(
        torch.randint(0, 256, (count, recipe.data.frames, size, size, 3), dtype=torch.uint8, device=place.device),
        torch.randint(0, num_classes, (count,), device=place.device),
        torch.arange(count),
        torch.ones(count, device=place.device),
        torch.zeros(count, dtype=torch.int64),
    )
    steps = Steps(count * 100, count, 1, 1)
    seconds: list[float] = []
    while len(seconds) <= _STEPS:
        settled = optimization.settled
        start = time.perf_counter()
        loss, _ = optimization.step(repeat(batch, 1), 0, steps, recipe.optimisation.lr, Clock())
        loss.item()  # waits for the device
        seconds += [time.perf_counter() - start] if settled else []
    return count / statistics.median(seconds[1:])


def _read_rate(index: Index, threads: int) -> float:
    """Bytes a second of whole files read at random, ``threads`` at a time, that the system was asked to forget."""
    drawn = index.healthy[epoch_order(len(index.healthy), 1, 0)]
    paths = [index.rows[number].path for number in drawn[:_READ_FILES]]
    end = time.perf_counter() + _READ_SECONDS
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(lambda path: _read(path) if time.perf_counter() < end else 0, paths))
    return total / (time.perf_counter() - start)


def _read(path: str) -> int:
    if os.path.isdir(path):
        return sum(_read(entry.path) for entry in os.scandir(path) if entry.is_file())
    member = tar_member(path)
    handle = os.open(member.archive if member else path, os.O_RDONLY)
    try:
        offset, size = (member.offset, member.size) if member else (0, os.fstat(handle).st_size)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, offset, size, os.POSIX_FADV_DONTNEED)
        return len(os.pread(handle, size, offset))
    finally:
        os.close(handle)


def _gop(index: Index) -> int:
    """Median number of frames from key frame to key frame over a few files."""
    lengths = []
    for number in index.healthy[epoch_order(len(index.healthy), 2, 0)[:_GOP_FILES]]:
        row = index.rows[number]
        if row.codec == PICTURES:
            return 0
        with opened(row.path) as (container, stream):
            keys = sum(packet.is_keyframe and not packet.is_discard for packet in container.demux(stream))
        lengths.append(row.frames // max(keys, 1))
    return int(statistics.median(lengths))
