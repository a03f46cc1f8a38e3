"""A learning rate from one short sweep: the rate grows geometrically over some steps, and the loss says how far to go.

The learning-rate range test (Smith, WACV 2017) as fastai and Lightning have it: losses are smoothed by an exponential
mean (0.98, its start corrected), the sweep ends where one is four times the best, and the rate at which the smoothed
loss falls steepest is suggested, the first ten steps and the last left out.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist

from aim_fast.data import Batch
from aim_fast.errors import TrainingError, UsageError
from aim_fast.files import replacing, write_whole
from aim_fast.training.class_weights import class_weights
from aim_fast.training.clips import data_classes, feature_source, open_split, open_training
from aim_fast.training.clock import Clock
from aim_fast.training.devices import join_processes
from aim_fast.training.drawing import drawing
from aim_fast.training.optimization import Optimization
from aim_fast.training.progress import RunProgress
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_groups import AUTO
from aim_fast.training.recipe_model import build_model
from aim_fast.training.steps import Steps
from aim_fast.training.teacher import open_teacher

_KEPT = 0.98
_WORSE = 4.0
_FIRST, _LAST = 10, 1


@dataclass(frozen=True)
class Sweep:
    """The rates of a sweep's steps, their losses, and the losses smoothed."""

    rates: list[float]
    losses: list[float]
    smooth: list[float]

    @property
    def suggestion(self) -> float | None:
        """The rate at which the loss falls steepest, two digits of it; None where it falls nowhere."""
        middle = np.array(self.smooth[_FIRST : len(self.smooth) - _LAST])
        if len(middle) < 2 or (slopes := np.gradient(middle)).min() >= 0:
            return None
        return float(f"{self.rates[_FIRST + int(slopes.argmin())]:.1e}")

    def write(self, folder: Path) -> list[Path]:
        """``learning_rate.csv`` and ``learning_rate.png``; raises UsageError where they cannot be written."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", "lr", "loss", "smooth_loss"])
        writer.writerows(zip(range(1, len(self.rates) + 1), self.rates, self.losses, self.smooth))
        table, picture = (folder / f"learning_rate.{kind}" for kind in ("csv", "png"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(table, text.getvalue())
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({error.strerror}); give another --output") from None
        with drawing(picture):
            self._draw(picture)
        return [table, picture]

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="tab:blue", alpha=0.3, linewidth=1)
        axes.plot(self.rates, self.smooth, color="tab:blue", label="training loss, smoothed")
        if self.suggestion:
            axes.axvline(self.suggestion, color="tab:green", linestyle=":", label=f"suggested: {self.suggestion:g}")
        low, high = min(self.smooth), max(self.smooth[:_FIRST])
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(low - 0.1 * high, 1.5 * high))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")


def find_learning_rate(recipe: Recipe, lowest: float, highest: float, count: int, quiet: bool = False) -> Sweep | None:
    """Sweeps ``count`` steps of the recipe's training from one rate to the other; None in all but the first process.

    Raises what opening a run raises, and TrainingError where no loss is finite. Writes nothing.
    """
    with join_processes(recipe.run.device, recipe.run.precision) as place:
        progress = RunProgress(quiet or not place.first)
        if recipe.optimisation.batch_size == AUTO:
            raise UsageError("batch_size auto is of train, which measures it: give a number of clips here")
        if recipe.data.cache_features:
            raise UsageError("cache_features is filled by train: leave it out here, or give --features")
        trained = build_model(recipe, data_classes(recipe), place)
        for line in trained.lines:
            progress.say(line)
        index = open_split(recipe, "train", place, progress, trained.classes)
        loader = open_training(recipe, place, index, trained.model.img_size, feature_source(trained), progress)
        steps = Steps.of(recipe, len(index), place.world)
        weights, teacher = class_weights(recipe.optimisation.class_weights, index), open_teacher(recipe, place, trained)
        optimization = Optimization(
            trained.model.train(), recipe, place, len(trained.classes), progress.say, weights, teacher
        )
        sweep, mean, best = Sweep([], [], []), 0.0, math.inf
        progress.start("learning rates", count)
        try:
            batches = _epochs(loader)
            for number, rate in enumerate(np.geomspace(lowest, highest, count).tolist()):
                loss = optimization.step(batches, number, steps, rate, Clock())[0].double()
                if place.world > 1:
                    dist.all_reduce(loss)
                if not math.isfinite(value := loss.item()):
                    break
                mean = _KEPT * mean + (1 - _KEPT) * value
                smooth = mean / (1 - _KEPT ** (number + 1))
                sweep.rates.append(rate)
                sweep.losses.append(value)
                sweep.smooth.append(smooth)
                best = min(best, smooth)
                progress.advance(1, loss=f"loss {value:.3f}")
                if number >= _FIRST and smooth > _WORSE * best:
                    break
        finally:
            progress.close()
            loader.close()
        if not sweep.rates:
            raise TrainingError(f"the loss at learning rate {lowest:g} is not finite: begin with a lower --from")
        return sweep if place.first else None


def _epochs(loader) -> Iterator[Batch]:  # type: ignore[no-untyped-def]
    """The batches of one epoch after the other."""
    for epoch in itertools.count():
        yield from loader.batches(epoch)
