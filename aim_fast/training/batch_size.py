"""The most clips that a process can take at a time, found by measuring steps of the run's own model and clips.

On a GPU steps are tried, doubled until one does not fit and halved in between; a step fits that leaves a tenth of the
card free, for frames that are being decoded. On a CPU, where a step that does not fit ends the process, the peaks of
two small steps say what a clip takes, and the memory that is free how many that makes. Nothing of a trial stays.
"""

from __future__ import annotations

import contextlib
import gc
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from aim_fast.data import Batch
from aim_fast.data.features.store import FeatureStore
from aim_fast.errors import TrainingError, UsageError
from aim_fast.training.checkpoint import copy_values
from aim_fast.training.clock import Clock
from aim_fast.training.devices import Place
from aim_fast.training.optimization import Optimization
from aim_fast.training.progress import RunProgress
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_groups import AUTO
from aim_fast.training.steps import Steps
from aim_fast.training.teacher import open_teacher
from aim_fast.training.trained_model import TrainedModel

_SHARE = 0.9  # of a card's memory, or of the free memory, that a step may take
_SMALL = (2, 4)  # clips of the steps by which a CPU's memory is judged
_MEMORY, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def fit_batch_size(trained: TrainedModel, clips: int, place: Place, progress: RunProgress) -> Recipe:
    """The recipe of a model that is about to train on ``clips``, with a number where its batch size is to be found.

    The smallest over all processes. Raises TrainingError where not even the smallest step fits, UsageError where memory
    cannot be measured.
    """
    recipe = trained.recipe
    if recipe.optimisation.batch_size != AUTO:
        return recipe
    sizes = batch_sizes(recipe, clips, place.world)
    alone = replace(place, world=1, rank=0)
    kept = {name: tensor.detach().clone() for name, tensor in trained.model.trained_tensors().items()}
    try:
        measure = _largest_on_gpu if place.device.type == "cuda" else _largest_on_cpu
        found = measure(trained, sizes, alone)
    finally:
        copy_values(trained.model.trained_tensors(), kept)
        trained.model.zero_grad(set_to_none=True)
    if place.world > 1:
        smallest = torch.tensor(found, device=place.device)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        found = int(smallest)
    if found == 0:
        raise TrainingError(f"not even {sizes[0]} clips fit on {place.device}: use --memory lean, or a smaller model")
    bound = ", the most that this run can take" if found == sizes[-1] else ""
    progress.say(f"batch size {found}{bound}: measured on {place.device.type}; the run's recipe keeps it")
    return recipe.replace(batch_size=found)


def batch_sizes(recipe: Recipe, clips: int, world: int) -> list[int]:
    """The sizes that a run of ``clips`` in ``world`` processes can take, ascending: those that divide a step of which
    the recipe says the clips, and even ones where clips are mixed in pairs."""
    asked = recipe.optimisation
    total = None if asked.accumulate else asked.total_batch_size
    most = max(1, (total or clips) // world)
    paired = recipe.augmentation.mixup or recipe.augmentation.cutmix
    sizes = [
        n for n in range(1, most + 1) if (total is None or total % (n * world) == 0) and (not paired or n % 2 == 0)
    ]
    if not sizes:
        raise UsageError(f"no batch size divides a step of {total or clips} clips in {world} processes: give a number")
    return sizes


def largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The largest of ascending ``sizes`` that fits, where all below it do; 0 for none."""
    below, above, jump = -1, 0, 1
    while above < len(sizes) and fits(sizes[above]):
        below, above, jump = above, above + jump, 2 * jump
    above = min(above, len(sizes))
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if fits(sizes[middle]) else (below, middle)
    return sizes[below] if below >= 0 else 0


def _largest_on_gpu(trained: TrainedModel, sizes: Sequence[int], place: Place) -> int:
    def fits(clips: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place.device)
        try:
            _take_steps(trained, clips, place)
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
        free, total = torch.cuda.mem_get_info(place.device)
        others = total - free - torch.cuda.memory_reserved(place.device)
        return torch.cuda.max_memory_reserved(place.device) + others <= _SHARE * total

    try:
        return largest(sizes, fits)
    finally:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place.device)


def _largest_on_cpu(trained: TrainedModel, sizes: Sequence[int], place: Place) -> int:
    """By the peaks of two small steps: what the larger one takes more is that of its further clips."""
    small = [size for size in sizes if size >= _SMALL[0]][:1] + [size for size in sizes if size >= _SMALL[1]][:1]
    small = list(dict.fromkeys(small)) or [sizes[0]]
    free = _free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    before = _resident()
    peaks = []
    for clips in small:
        _reset_peak()
        _take_steps(trained, clips, place)
        gc.collect()
        peaks.append(place.peak_memory() - before)
    each = peaks[-1] / small[-1]  # an upper bound, where there is but one step or a larger one took no more
    if len(small) > 1 and peaks[1] > peaks[0]:
        each = (peaks[1] - peaks[0]) / (small[1] - small[0])
    fixed = max(peaks[-1] - each * small[-1], 0)
    most = int((_SHARE * free - fixed) / max(each, 1))
    fitting = bisect_right(sizes, most)
    return sizes[fitting - 1] if fitting else 0


def _take_steps(trained: TrainedModel, clips: int, place: Place) -> None:
    """Two training steps of so many clips at a learning rate of 0: the second has the optimiser's state too."""
    recipe = trained.recipe.replace(batch_size=clips, total_batch_size=None, accumulate=1, cuda_graph="off")
    model, classes = trained.model, trained.classes
    teacher = open_teacher(recipe, place, trained)
    weights = torch.ones(len(classes)) if recipe.optimisation.class_weights else None
    training = model.training
    step = Optimization(model.train(), recipe, place, len(classes), weights=weights, teacher=teacher)
    try:
        for number in range(2):
            step.step(iter([_clips(trained, clips, place)]), number, Steps(2 * clips, clips, 1, 1), 0.0, Clock())
        if place.device.type == "cuda":
            torch.cuda.synchronize(place.device)
    finally:
        model.train(training)


def _clips(trained: TrainedModel, count: int, place: Place) -> Batch:
    """A batch of the run's shapes: black clips, or zeros in place of the features that it trains on."""
    count *= trained.recipe.augmentation.aug_repeats
    data, model = trained.recipe.data, trained.model
    if data.features:
        store = FeatureStore(Path(data.features) / "train")
        frames = torch.zeros(count, *store.shape, dtype=store.read([0], [0]).dtype)
    else:
        frames = torch.zeros(count, model.num_frames, model.img_size, model.img_size, 3, dtype=torch.uint8)
    if data.cache_features:
        with torch.no_grad(), place.autocast():
            kept = model.frozen_features(frames[:1].to(place.device))
        frames = kept.expand(count, *kept.shape[1:]).contiguous()
    shape = (count, len(trained.classes)) if data.multi_label else (count,)
    labels = torch.zeros(shape, dtype=torch.float32 if data.multi_label else torch.int64)
    numbers = torch.arange(count)
    return Batch(frames.to(place.device), labels.to(place.device), numbers, torch.ones(count).to(place.device), numbers)


def _free_memory() -> int:
    """Bytes that this machine, or the container that this process is in, has left."""
    try:
        lines = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        raise UsageError("batch_size auto cannot measure memory on this system, without /proc: give a number") from None
    with contextlib.suppress(OSError, ValueError):  # of no container, or without a limit
        free = min(free, int((_GROUP / "memory.max").read_text()) - int((_GROUP / "memory.current").read_text()))
    return free


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
