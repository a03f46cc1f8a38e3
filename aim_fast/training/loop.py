"""Training: from a recipe to a run's folder.

Every random number of a step is a function of (seed, step, batch, rank), so that a resumed run goes on exactly as one
that was never stopped, and no generator state is kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock
from torch import Tensor

from aim_fast.data import Batch, Index
from aim_fast.errors import CheckpointError, TrainingError
from aim_fast.files import lock_run, write_whole
from aim_fast.training.checkpoint import find_checkpoint, read_checkpoint, save_checkpoint
from aim_fast.training.clips import data_classes, feature_source, open_split, open_training, open_validation
from aim_fast.training.clock import Clock
from aim_fast.training.cuda_graph import check_cuda_graph
from aim_fast.training.devices import Place, join_processes
from aim_fast.training.drawing import drawing
from aim_fast.training.evaluation import evaluate
from aim_fast.training.features import cache_features
from aim_fast.training.first_start import tune_for_step
from aim_fast.training.metrics import CURVES, MetricsLog, draw_curves
from aim_fast.training.optimization import Optimization
from aim_fast.training.optimizer import learning_rate
from aim_fast.training.progress import RunProgress
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_model import build_model
from aim_fast.training.run_folder import RECIPE, check_output
from aim_fast.training.steps import Steps
from aim_fast.training.stop import StopRequest
from aim_fast.training.trained_model import TrainedModel


@dataclass(frozen=True)
class Result:
    """What a training run ended with: its folder, its best validation top-1, the last validation, and its last step.

    ``stopped``: SIGTERM ended it early; its last checkpoint is that of the last step. ``first``: of the first process.
    """

    folder: Path
    best_top1: float
    last: dict[str, Any]
    step: int
    stopped: bool = False
    first: bool = True


class _Stopped(Exception):
    """A validation was left because the run is to stop."""


def train(recipe: Recipe, resume: bool = False, quiet: bool = False) -> Result:
    """Trains as ``recipe`` says and leaves ``recipe.run.output``; with ``resume``, goes on from its last checkpoint.

    Raises UsageError, DataError, WeightsError or CheckpointError before anything is written, and TrainingError when
    the loss is not finite or memory does not suffice. On SIGTERM it finishes the step, saves and returns.
    """
    folder = check_output(recipe, resume)
    with join_processes(recipe.run.device, recipe.run.precision) as place:
        if recipe.run.cuda_graph == "on":
            check_cuda_graph(place)
        progress = RunProgress(quiet or not place.first)
        # a scan of a large data set takes long: what can be known before it is found out before it
        classes = data_classes(recipe)
        trained = build_model(recipe, classes, place)
        for line in trained.lines:
            progress.say(line)
        splits = {split: open_split(recipe, split, place, progress, classes) for split in ("train", "validation")}
        if recipe.data.cache_features:
            cache_features(trained, place, splits.values(), progress)
        trainer = Trainer(folder, place, progress, trained, splits["train"], splits["validation"])
        if resume:
            trainer.restore()
        try:
            with trainer.stop:
                return trainer.run()
        except torch.OutOfMemoryError:
            clips, frames = recipe.optimisation.batch_size, recipe.data.frames
            raise TrainingError(
                f"out of memory on {place.device} with {clips} clips of {frames} frames: use "
                f"--memory balanced or lean, or --batch-size {max(clips // 2, 1)}"
            ) from None
        finally:
            trainer.close()


class Trainer:
    """One process of a training run."""

    def __init__(
        self,
        folder: Path,
        place: Place,
        progress: RunProgress,
        trained: TrainedModel,
        index: Index,
        validation: Index,
    ) -> None:
        self.recipe, self.folder, self.place, self.progress = trained.recipe, folder, place, progress
        self.model, self.identity, self.classes = trained.model, trained.identity, trained.classes
        recipe = self.recipe
        self.steps = Steps.of(recipe, len(index.rows), place.world)
        self.optimization = Optimization(self.model, recipe, place, len(self.classes), progress.say)
        source, img_size = feature_source(trained), self.model.img_size
        self.loader = open_training(recipe, place, index, img_size, source, progress)
        self.validation = open_validation(recipe, place, validation, img_size, source, progress)
        self.step = 0
        self.best: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self.resumed = False
        self.validated = True  # whether the epoch that ends at this step has been validated
        self.stop = StopRequest(place)
        self.named: set[str] = set()  # files that broke under way and were said
        self.tuned = place.device.type != "cuda" or recipe.run.kernels != "tuned" or recipe.run.backend != "fused"
        self.log: MetricsLog | None = None
        self.lock: FileLock | None = None
        trains, total = (
            sum(p.numel() for p in ps) for ps in (self.optimization.trainable.values(), self.model.parameters())
        )
        progress.say(
            f"{recipe.model.model}: {trains:,} of {total:,} parameters train, {place.dtype} on {place.device.type}; "
            f"{self.steps.clips_per_step} clips a step, {self.steps.per_epoch} steps an epoch"
        )
        asked = recipe.optimisation
        if self.steps.clips_per_step > (asked.total_batch_size or math.inf) and not asked.accumulate:
            progress.say(
                f"a step is larger than total_batch_size {asked.total_batch_size}: {asked.batch_size} clips x "
                f"{place.world} processes; the learning rate stays {asked.lr:g}"
            )

    def close(self) -> None:
        self.progress.close()
        self.loader.close()
        self.validation.close()
        if self.log:
            self.log.close()
        if self.lock:
            self.lock.release()

    def restore(self) -> None:
        """Continues from the last checkpoint: trained tensors, optimiser, step and best result.

        A run that was killed before its first checkpoint begins again.
        """
        self.resumed = True
        if not (self.folder / "checkpoints" / "last").exists():
            return
        checkpoint = read_checkpoint(find_checkpoint(self.folder, "last"), with_state=True)
        state, saved = checkpoint.state or {}, checkpoint.identity
        if "optimizer" not in state:
            raise CheckpointError(f"{self.folder}: was converted and holds no optimiser, so it cannot be resumed")
        if saved.trunk_sha256 != self.identity.trunk_sha256:
            raise CheckpointError(
                f"{self.folder}: was trained on the trunk of {saved.weights}; give the same --weights"
            )
        if saved.classes != self.classes or state["clips"] != self.steps.clips:
            raise CheckpointError(f"{self.folder}: was trained on other clips or classes than --data-root holds now")
        if state["clips_per_step"] != self.steps.clips_per_step:
            raise CheckpointError(
                f"{self.folder}: had {state['clips_per_step']} clips a step, not {self.steps.clips_per_step}: use "
                "as many processes as before"
            )
        within, before = state["step"] % self.steps.per_epoch, state["processes"]
        if self.recipe.data.read_order == "shards" and within and before != self.place.world:
            raise CheckpointError(
                f"{self.folder}: stands within an epoch whose shards {before} processes share: resume it with as many"
            )
        self.optimization.load_state(state, checkpoint.tensors)
        self.step, self.best, self.last = state["step"], state["best"], state["last"]
        self.validated = state.get("validated", True)

    def run(self) -> Result:
        if self.place.first:
            self._open_folder()
        epochs = self.recipe.optimisation.epochs
        self.model.train()
        if epochs == 0:
            self._finish_epoch(0)
        stopped = not self.validated and not self._finish_epoch(self.step // self.steps.per_epoch - 1)
        while not stopped and self.step < epochs * self.steps.per_epoch:
            stopped = not self._train_epoch(self.step // self.steps.per_epoch)
        return Result(self.folder, self.best.get("top1", 0.0), self.last, self.step, stopped, self.place.first)

    def _open_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = lock_run(self.folder)
            if not self.resumed:
                write_whole(self.folder / RECIPE, self.recipe.to_yaml())
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: cannot be written ({error.strerror}); give another --output"
            ) from None
        self.log = MetricsLog(self.folder, self.step if self.resumed else None, self.validated)

    def _train_epoch(self, epoch: int) -> bool:
        """Trains to the end of an epoch and finishes it; False when the run was stopped on the way, and saved."""
        recipe, steps = self.recipe, self.steps
        first = self.step % steps.per_epoch
        batches = iter(self.loader.batches(epoch, start=steps.first_batch(self.step)))
        if not self.tuned:
            batches = self._tune(batches)
        self.progress.start(
            f"epoch {epoch + 1}/{recipe.optimisation.epochs}", steps.clips, first * steps.clips_per_step
        )
        clock = Clock()
        pending: _Pending | None = None
        for place_in_epoch in range(first + 1, steps.per_epoch + 1):
            rate = learning_rate(recipe, self.step, steps.per_epoch)
            clips = steps.clips_of(self.step)
            loss, rows = self.optimization.step(batches, self.step, steps, rate, clock)
            current = _Pending(loss, [self.loader.index.rows[row].path for row in rows], self.step + 1)
            # a loss is looked at one step later, so that a GPU is never waited for
            if pending:
                pending.value()
            pending = current
            self.step += 1
            clock.count(clips)
            last = place_in_epoch == steps.per_epoch
            if self.step % recipe.run.log_every == 0 or last:
                self._log_step(epoch, pending.value(), rate, clock)
            if recipe.run.checkpoint_every and self.step % recipe.run.checkpoint_every == 0 and not last:
                pending.value()
                self._save("last")
            self.progress.advance(
                clips,
                wait=f"data-wait {100 * clock.waiting:.0f}%",
                peak=f"peak {self.place.peak_memory() / 2**30:.1f} GiB",
            )
            if self.stop.agreed():
                pending.value()
                self.validated = not last
                self._save("last")
                return False
        self.progress.close()
        return self._finish_epoch(epoch)

    def _tune(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """``batches``, of which the first was looked at for the shapes of a step."""
        self.tuned = True
        first = next(batches)
        frames, _, _, *classes = self.optimization.inputs(first, 0)
        tune_for_step(self.model, (frames, *classes), self.place, self.progress)
        return itertools.chain([first], batches)

    def _log_step(self, epoch: int, loss: float, rate: float, clock: Clock) -> None:
        """Writes the step's loss over all processes."""
        if self.place.world > 1:
            shared = torch.tensor(loss, device=self.place.device, dtype=torch.float64)
            dist.all_reduce(shared)
            loss = shared.item()
        if self.log:
            speed, waiting = round(clock.clips_per_s, 2), round(clock.waiting, 4)
            self.log.write(
                "train", self.step, epoch=epoch + 1, loss=loss, lr=rate, clips_per_s=speed, data_wait=waiting
            )
        self.progress.advance(0, loss=f"loss {loss:.3f}")

    def _finish_epoch(self, epoch: int) -> bool:
        """Validates, where the recipe says so, writes the checkpoints and draws the curves; False when stopped."""
        recipe = self.recipe
        last = epoch + 1 >= recipe.optimisation.epochs
        validates = last or bool(recipe.run.eval_every and (epoch + 1) % recipe.run.eval_every == 0)
        best = False
        if validates and self.step:
            self.validated = False
            self._save("last")
        counts = self._data_counts()
        if self.log:
            self.log.write("data", self.step, epoch=epoch + 1, **counts)
        if validates:
            try:
                summary = self._validate()
            except _Stopped:
                return False
            self.last = {"epoch": min(epoch + 1, recipe.optimisation.epochs), **summary}
            best = not self.best or summary["top1"] > self.best["top1"]
            if best:
                self.best = dict(self.last)
            if self.log:
                self.log.write("eval", self.step, **self.last)
            self.progress.say(
                f"epoch {self.last['epoch']}/{recipe.optimisation.epochs}: validation top-1 "
                f"{100 * summary['top1']:.1f} %, top-5 {100 * summary['top5']:.1f} %, loss {summary['loss']:.3f} on "
                f"{summary['videos']} videos"
            )
        self.validated = True
        self._save(*(("last", "best") if best else ("last",)))
        if self.place.first:
            with drawing(self.folder / CURVES):
                draw_curves(self.folder, 1 / len(self.classes))
        return True

    def _data_counts(self) -> dict[str, int]:
        """Counts of the training data, and by name what broke since it was indexed; added up over the processes."""
        counts = dataclasses.asdict(self.loader.counts)
        for path, reason in counts.pop("names").items():
            if path not in self.named:
                self.progress.say(f"replaced from now on: {path}: {reason}")
                self.named.add(path)
        if self.place.world > 1:
            found = torch.tensor([counts["failed"], counts["replaced"]], device=self.place.device)
            dist.all_reduce(found)
            counts["failed"], counts["replaced"] = found.tolist()
        return counts

    def _validate(self) -> dict[str, Any]:
        """Scores the validation split, with the averaged tensors where they are kept."""
        place = self.place
        with self.optimization.averages():
            scores = evaluate(
                self.model, self.validation, len(self.classes), place.device, place.autocast, self._leave_when_asked
            )
        return scores.summary()

    def _leave_when_asked(self, _: int) -> None:
        if self.stop.at_once:
            raise _Stopped

    def _save(self, *names: str) -> None:
        if not self.place.first:
            return
        state = {
            "step": self.step,
            "validated": self.validated,
            "clips": self.steps.clips,
            "clips_per_step": self.steps.clips_per_step,
            "processes": self.place.world,
            "best": self.best,
            "last": self.last,
            **self.optimization.state(),
        }
        save_checkpoint(self.folder / "checkpoints", names, self.optimization.used, state, self.identity)


@dataclass
class _Pending:
    """The loss of a step that may still be under way on a device, and the files that it came from."""

    loss: Tensor
    files: list[str]
    step: int

    def value(self) -> float:
        """The loss; raises TrainingError when it is not finite."""
        loss = self.loss.item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of step {self.step} is {loss}: train again in another --output "
                f"with a lower --lr or --precision fp32; files of that step: {', '.join(self.files)}"
            )
        return loss
