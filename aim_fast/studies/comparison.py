"""Models side by side: parameters, multiply-adds, and speed and memory measured in one run on one device.

Speed: all contenders are on the device together and take turns, forward passes first (no gradients), then training
steps (cross-entropy, backward, AdamW on what each one trains), each warmed up; figures are medians over the rounds.
Ours hold their frozen trunk in the precision of the run, as ``train`` does, others run under autocast from fp32. On a
GPU the kernels that ``train`` or ``tune`` chose there before run.

Memory of a training step: on a GPU the allocator's highest point above what was there before the model, weights and
optimiser included; on a CPU, where nothing counts that, the bytes that autograd keeps for backward.
"""

from __future__ import annotations

import csv
import gc
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from aim_fast.errors import TrainingError
from aim_fast.models.counting.flops import count_parameters, multiply_adds
from aim_fast.models.counting.saved_bytes import saved_bytes
from aim_fast.models.video_model import VideoModel
from aim_fast.studies.contenders import Contender
from aim_fast.timing import Timing, take_turns
from aim_fast.training.devices import Place
from aim_fast.training.first_start import run_recalled
from aim_fast.training.trained_model import move_to_place

_MIB = 2**20


@dataclass
class Row:
    """One model's figures; None where nothing was measured or published.

    ``params`` and ``trainable`` numbers of parameters; ``gflops`` 10⁹ multiply-adds of one view; ``forward`` and
    ``train`` clips a second, their ``_spread`` half the distance of the quartiles as a share; ``memory_mib`` of one
    training step at the batch size, see the module; ``top1`` percent that a run reached, on what ``scored`` says;
    ``published_top1`` percent on ``published_dataset``, with its views and source, and as printed there parameters and
    trained ones in millions and GFLOPs of all views.
    """

    model: str
    frames: int
    params: int
    trainable: int
    gflops: float
    forward: float | None = None
    forward_spread: float | None = None
    train: float | None = None
    train_spread: float | None = None
    memory_mib: float | None = None
    top1: float | None = None
    scored: str | None = None
    published_top1: float | None = None
    published_dataset: str | None = None
    published_views: str | None = None
    published_source: str | None = None
    note: str | None = None
    published_params: float | None = None
    published_trainable: float | None = None
    published_gflops: float | None = None


def count(contenders: Sequence[Contender]) -> list[Row]:
    """Parameters and multiply-adds of each, on the meta device: no memory is taken and nothing computed.

    Raises UsageError for a model that cannot be made, such as one of a library that is not installed.
    """
    rows = []
    for contender in contenders:
        model = contender.build_without_memory()
        params, trainable = count_parameters(model)
        products = multiply_adds(model, stored=bool(contender.stored))
        row = Row(contender.label, model.num_frames, params, trainable, round(products / 1e9, 3))
        row.top1, row.scored = contender.top1, contender.scored
        for name in ("top1", "dataset", "views", "source", "params", "trainable", "gflops"):
            setattr(row, f"published_{name}", contender.published.get(name))
        rows.append(row)
    return rows


def measure(
    contenders: Sequence[Contender],
    rows: Sequence[Row],
    place: Place,
    batch_size: int,
    rounds: int,
    say: Callable[[str], None] = lambda line: None,
) -> str | None:
    """Writes speed and memory into ``rows``, which stand for ``contenders`` in order; on a GPU a line on its kernels.

    A model whose step does not fit into the device's memory alone gets a note instead of figures. Raises TrainingError
    when they do not fit together, and before anything runs CheckpointError for machine code that was not allowed.
    """
    for contender in contenders:
        contender.check_code()
    kernels: str | None = None
    runners: dict[str, _Runner] = {}
    for number, (contender, row) in enumerate(zip(contenders, rows, strict=True)):
        say(f"{contender.label}: memory of a step")
        if runner := _ready(contender, row, place, batch_size):
            runners[str(number)] = runner
            kernels = runner.kernels
    _check_memory(rows, place, batch_size)
    try:
        say(f"forward passes, {rounds} rounds")
        forward = take_turns({key: r.forward for key, r in _mode(runners, False)}, rounds, place.device.type, warm=1)
        say(f"training steps, {rounds} rounds")
        train = take_turns({key: r.train for key, r in _mode(runners, True)}, rounds, place.device.type, warm=1)
    except torch.OutOfMemoryError:
        raise TrainingError(
            f"out of memory on {place.device} with {len(runners)} models side by side: compare fewer at a time, or "
            f"use --batch-size {max(batch_size // 2, 1)}"
        ) from None
    for key in runners:
        row = rows[int(key)]
        row.forward, row.forward_spread = _speed(forward[key], batch_size)
        if key in train:
            row.train, row.train_spread = _speed(train[key], batch_size)
    return kernels


def memory_meaning(place: Place) -> str:
    """What the column of memory means on a device, for a reader."""
    if place.device.type == "cuda":
        return "highest point of the GPU's allocator in a training step, weights and optimiser included"
    return "bytes that autograd keeps for backward in a training step"


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, with a line of column names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f.name for f in fields(Row)]
    writer.writerow(names)
    for row in rows:
        writer.writerow(["" if (value := getattr(row, name)) is None else value for name in names])
    return text.getvalue()


class _Runner:
    """One contender on the device, with clips of its own length and what a training step needs."""

    def __init__(self, contender: Contender, place: Place, batch_size: int) -> None:
        torch.manual_seed(0)
        self.place = place
        self.trains = contender.export is None
        if self.trains:
            self.model: VideoModel = contender.build()
            move_to_place(self.model, place)
        else:
            self.model = contender.open_export(place.device)
        self.kernels = run_recalled(self.model, place)
        side, frames = self.model.img_size, self.model.num_frames
        shape = (batch_size, frames, side, side, 3)
        self.clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=place.device)
        if contender.stored:
            with torch.no_grad(), place.autocast():
                self.clips = self.model.frozen_features(self.clips)
        self.labels = torch.randint(0, self.model.num_classes, (batch_size,), device=place.device)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.trains:
            self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=place.device.type == "cuda")

    def forward(self) -> None:
        with torch.no_grad(), self.place.autocast():
            self.model(self.clips)

    def loss(self) -> torch.Tensor:
        scored, labels = self.model.candidates(self.labels, 0), self.labels
        if scored is None:
            inputs = self.model.step_inputs(labels, torch.arange(len(labels)))
        else:
            inputs, labels = (scored,), torch.searchsorted(scored, labels)
        with self.place.autocast():
            logits = self.model(self.clips, *inputs)
        return self.model.losses(logits, labels, torch.ones_like(labels, dtype=torch.float32), 0.0).mean()

    def train(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        # the others' turns shall not find these in memory
        self.optimizer.zero_grad(set_to_none=True)

    def memory(self, before: int) -> int:
        """Bytes of a training step, see the module; ``before`` are those allocated without this model."""
        self.model.train()
        if self.place.device.type != "cuda":
            return saved_bytes(self.model, self.loss)
        self.train()  # makes the optimiser's state
        torch.cuda.reset_peak_memory_stats(self.place.device)
        self.train()
        return torch.cuda.max_memory_allocated(self.place.device) - before


def _ready(contender: Contender, row: Row, place: Place, batch_size: int) -> _Runner | None:
    """A contender on the device, its memory written into ``row``; None, with a note, where it does not fit."""
    gc.collect()
    on_gpu = place.device.type == "cuda"
    before = torch.cuda.memory_allocated(place.device) if on_gpu else 0
    try:
        runner = _Runner(contender, place, batch_size)
        if runner.trains:
            row.memory_mib = round(runner.memory(before) / _MIB, 3)
        return runner
    except torch.OutOfMemoryError:
        row.note = f"out of memory with {batch_size} clips"
        return None
    finally:
        if on_gpu:
            torch.cuda.empty_cache()


def _check_memory(rows: Sequence[Row], place: Place, batch_size: int) -> None:
    """On a CPU, where too much memory is a process killed without a word: refuse what will not fit.

    To come are the optimisers' states (fp32, two a parameter), and of one model at a time the gradients and what is
    kept for backward.
    """
    if place.device.type == "cuda":
        return
    step = max((4 * row.trainable + (row.memory_mib or 0) * _MIB for row in rows), default=0.0)
    needed, free = sum(8 * row.trainable for row in rows) + step, free_memory()
    if free is not None and needed > free:
        raise TrainingError(
            f"{len(rows)} models side by side need {needed / 2**30:.1f} GiB more, {free / 2**30:.1f} are free: compare "
            f"fewer at a time, with fewer classes" + (", or use --batch-size 1" if batch_size > 1 else "")
        )


def free_memory() -> int | None:
    """Bytes that this machine can still give, where it says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _mode(runners: dict[str, _Runner], training: bool) -> Iterator[tuple[str, _Runner]]:
    for key, runner in runners.items():
        if training and not runner.trains:
            continue
        runner.model.train(training)
        yield key, runner


def _speed(timing: Timing, batch_size: int) -> tuple[float, float]:
    return float(f"{batch_size / timing.median:.4g}"), round(timing.spread, 3)


def to_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values, for JSON."""
    return [{f.name: getattr(row, f.name) for f in fields(Row)} for row in rows]
