"""An epoch of PromptCLIP on stored frame features: reading 10,000 clips, and training on them.

The store is written here by the code that ``aim-fast features`` runs, with random numbers for features: B/16's shape,
16 frames of 512 channels in fp16, two views a clip. ``read`` is every batch of an epoch in training order, from a warm
page cache, without a model. ``step`` is one optimiser step of ``promptclip_b16`` (random values) on a batch of 64 with
as many class names as the data set has: text tower forward and backward, two temporal blocks, AdamW; on a CPU a few
steps stand for the epoch's 157.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from aim_fast.data.features.loader import FeatureLoader
from aim_fast.data.features.store import FeatureSource, FeatureStore, write_features
from aim_fast.data.index.rows import Index, Row
from aim_fast.data.loader import Batch
from aim_fast.data.plan.sampling import Sampling
from aim_fast.models.registry import create_model

_CLIPS = 10_000
_CLASSES = {"hmdb51": 51, "ucf101": 101, "kinetics400": 400}
_ROUNDS = 3


@dataclasses.dataclass
class _RandomViews:
    """In the place of a loader of videos: batches that the features come out of as they are."""

    index: Index
    sampling: Sampling
    batch_size: int
    shape: tuple[int, ...]
    seed: int = 0

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        count, size = len(self.index) * self.sampling.views, self.batch_size
        nothing = torch.zeros(size, dtype=torch.int64)
        for first in range(start * size, count, size):
            weights = (torch.arange(first, first + size) < count).float()
            yield Batch(torch.randn(size, *self.shape), nothing, nothing, weights, nothing)


def run(options: argparse.Namespace) -> dict:
    """Measure and print: seconds of reading an epoch, and of training one on each data set's number of names."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    frames, batch = options.frames or 16, options.batch or 64
    results: dict = {"clips": _CLIPS, "frames": frames, "batch": batch, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        index = _index()
        began = time.perf_counter()
        source = FeatureSource("frame features", "0" * 64, frames, 0, 224, "quick_gelu", (0.0,) * 3, (1.0,) * 3)
        views = _RandomViews(index, Sampling(frames, clips=2, random=True), 500, (frames, 512))
        write_features(Path(folder) / "train", source, views, lambda x: x)  # type: ignore[arg-type]
        results["write_s"] = round(time.perf_counter() - began, 2)
        store = FeatureStore(Path(folder) / "train")
        results["store_mib"] = round(store.bytes / 2**20, 1)
        reads = [_read(index, store, batch, device, epoch) for epoch in range(_ROUNDS)]
        results["read_epoch_s"] = round(statistics.median(reads), 3)
        results["read_epochs_s"] = [round(seconds, 3) for seconds in reads]
        loader = FeatureLoader(index, store, train=True, batch_size=batch, device=device)
        for name, classes in _CLASSES.items():
            if device.type == "cpu" and classes > 101:  # minutes
                continue
            seconds = _train(loader, classes, frames, device)
            results[f"step_s_{name}"] = round(seconds, 4)
            results[f"train_epoch_s_{name}"] = round(seconds * loader.batches_per_epoch, 1)
        loader.close()
    table = Table("what", "seconds", title=f"{_CLIPS} clips of stored features, {device.type}")
    for name in [name for name in results if "_s" in name and isinstance(results[name], float)]:
        table.add_row(name, f"{results[name]:g}")
    Console().print(table)
    return results


def _index() -> Index:
    rows = [Row(f"/{n}.mp4", n % 51, str(n), 64, 240, 320, "h264", "yuv420p", 0, n, 0, None) for n in range(_CLIPS)]
    return Index("list", "train", "/", [f"class {n}" for n in range(51)], rows)


def _read(index: Index, store: FeatureStore, batch: int, device: torch.device, epoch: int) -> float:
    loader = FeatureLoader(index, store, train=True, batch_size=batch, device=device)
    began = time.perf_counter()
    seen = sum(int(part.weights.sum()) for part in loader.batches(epoch))
    seconds = time.perf_counter() - began
    loader.close()
    if seen != _CLIPS:
        raise RuntimeError(f"{seen} clips were read, not {_CLIPS}")
    return seconds


def _train(loader: FeatureLoader, classes: int, frames: int, device: torch.device) -> float:
    """Median seconds of a step."""
    names = [f"class number {number}" for number in range(classes)]
    model = create_model("promptclip_b16", num_frames=frames, class_names=names).to(device)
    optimizer = torch.optim.AdamW([p for _, p in model.trainable_parameters()], lr=1e-4, fused=True)
    steps = loader.batches_per_epoch if device.type == "cuda" else 4
    times = []
    for number, batch in enumerate(loader.batches(1)):
        if number > steps:
            break
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(batch.frames)
        F.cross_entropy(logits.float(), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
