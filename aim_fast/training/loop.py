"""Training: from a recipe to a run's folder.

Every random number of a step is a function of (seed, step, batch, rank), so that a resumed run goes on exactly as one
that was never stopped, and no generator state is kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock

from aim_fast.data import Batch, Index
from aim_fast.errors import CheckpointError, TrainingError
from aim_fast.files import lock_run, write_whole
from aim_fast.training.arriving import Arriving
from aim_fast.training.batch_size import fit_batch_size
from aim_fast.training.checkpoint import find_checkpoint, read_checkpoint, save_checkpoint
from aim_fast.training.class_weights import class_weights
from aim_fast.training.clips import (
    data_classes,
    feature_source,
    open_split,
    open_training,
    open_validation,
    sampling_of,
)
from aim_fast.training.clock import Clock
from aim_fast.training.cuda_graph import check_cuda_graph
from aim_fast.training.devices import Place, join_processes
from aim_fast.training.drawing import drawing
from aim_fast.training.early_stopping import EarlyStopping
from aim_fast.training.evaluation import Evaluation, evaluate
from aim_fast.training.features import cache_features
from aim_fast.training.first_start import tune_for_step
from aim_fast.training.metrics import CURVES, MetricsLog, draw_curves
from aim_fast.training.multi_label_evaluation import MultiLabelEvaluation
from aim_fast.training.optimization import Optimization
from aim_fast.training.optimizer import learning_rate
from aim_fast.training.pending_loss import PendingLoss
from aim_fast.training.progress import RunProgress
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_groups import seconds_of
from aim_fast.training.recipe_model import build_model
from aim_fast.training.report import Report, protocol
from aim_fast.training.run_folder import RECIPE, check_output, resumed
from aim_fast.training.steps import Steps
from aim_fast.training.stop import StopRequest
from aim_fast.training.teacher import open_teacher
from aim_fast.training.trackers import check_trackers, open_trackers
from aim_fast.training.trained_model import TrainedModel


@dataclass(frozen=True)
class Result:
    """What a training run ended with: its folder, its best validation top-1 (mAP where clips may have several labels),
    the last validation, and its last step.

    ``stopped``: ``cause``, SIGTERM or the time limit, ended it early; its last checkpoint is that of the last step.
    ``first``: of the first process. ``report``: scores of the last validation; None where this call did not validate.
    """

    folder: Path
    best_top1: float
    last: dict[str, Any]
    step: int
    stopped: bool = False
    cause: str = ""
    first: bool = True
    report: Report | None = None


class _Stopped(Exception):
    """A validation was left because the run is to stop."""


def train(recipe: Recipe, resume: bool = False, quiet: bool = False, until: int | None = None) -> Result:
    """Trains as ``recipe`` says and leaves ``recipe.run.output``; with ``resume``, goes on from its last checkpoint.

    ``until`` is a step to stop after, as SIGTERM stops. Raises UsageError, DataError, WeightsError or CheckpointError
    before anything is written, and TrainingError when the loss is not finite or memory does not suffice. On SIGTERM and
    at the time limit it finishes the step, saves and returns.
    """
    recipe = resumed(recipe) if resume else recipe
    folder = check_output(recipe, resume)
    check_trackers(recipe.run.tracker)
    with join_processes(recipe.run.device, recipe.run.precision) as place:
        if recipe.run.cuda_graph == "on":
            check_cuda_graph(place)
        stop = StopRequest(place, seconds_of(recipe.run.time_limit) if recipe.run.time_limit else math.inf)
        progress = RunProgress(quiet or not place.first)
        # a scan of a large data set takes long: what can be known before it is found out before it
        classes = data_classes(recipe)
        trained = build_model(recipe, classes, place)
        for line in trained.lines:
            progress.say(line)
        splits = {split: open_split(recipe, split, place, progress, classes) for split in ("train", "validation")}
        trained = replace(trained, recipe=fit_batch_size(trained, len(splits["train"]), place, progress))
        if recipe.data.cache_features:
            cache_features(trained, place, splits.values(), progress)
        trainer = Trainer(folder, place, progress, trained, splits["train"], splits["validation"], stop, until)
        if resume:
            trainer.restore()
        try:
            with trainer.stop:
                return trainer.run()
        except torch.OutOfMemoryError:
            clips, frames = trained.recipe.optimisation.batch_size, recipe.data.frames
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
        stop: StopRequest,
        until: int | None = None,
    ) -> None:
        self.recipe, self.folder, self.place, self.progress = trained.recipe, folder, place, progress
        self.model, self.identity, self.classes = trained.model, trained.identity, trained.classes
        recipe = self.recipe
        self.steps = Steps.of(recipe, len(index.rows), place.world)
        asked, self.teacher = recipe.optimisation, open_teacher(recipe, place, trained)
        weights = class_weights(asked.class_weights, index)
        self.optimization = Optimization(
            self.model, recipe, place, len(self.classes), progress.say, weights, self.teacher
        )
        source, img_size = feature_source(trained), self.model.img_size
        self.loader = open_training(recipe, place, index, img_size, source, progress)
        self.validation = open_validation(recipe, place, validation, img_size, source, progress)
        self.step = 0
        self.best: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self.report: Report | None = None
        self.resumed = False
        self.validated = True  # whether the epoch that ends at this step has been validated
        self.metric = "map" if index.multi_label else "top1"
        self.early = EarlyStopping(asked.patience, asked.patience_metric or self.metric)
        self.stop, self.until = stop, until
        self.named: set[str] = set()  # files that broke under way and were said
        self.tuned = place.device.type != "cuda" or recipe.run.kernels != "tuned" or recipe.run.backend != "fused"
        self.log: MetricsLog | None = None
        self.lock: FileLock | None = None
        trains, total = (
            sum(p.numel() for p in ps) for ps in (self.optimization.trainable.values(), self.model.parameters())
        )
        progress.say(
            f"{recipe.model.model}: {trains:,} of {total:,} parameters train, "
            f"{place.precision} on {place.device.type}; {self.steps.clips_per_step} clips a step, "
            f"{self.steps.per_epoch} steps an epoch"
        )
        if matters := self.optimization.split_matters(self.steps):
            progress.say(f"{matters}: a step depends on how its {self.steps.clips_per_step} clips are split")
        if self.teacher:
            progress.say(self.teacher.line)
        if larger := self.steps.larger_than_asked(recipe):
            progress.say(larger)

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
        if self.teacher and state.get("teacher") != self.teacher.sha256:
            raise CheckpointError(
                f"{self.folder}: had another teacher than {self.recipe.distillation.teacher} holds now; give that back"
            )
        within, before = state["step"] % self.steps.per_epoch, state["processes"]
        if self.recipe.data.read_order == "shards" and within and before != self.place.world:
            raise CheckpointError(
                f"{self.folder}: stands within an epoch whose shards {before} processes share: resume it with as many"
            )
        self.optimization.load_state(state, checkpoint.tensors)
        self.step, self.best, self.last = state["step"], state["best"], state["last"]
        self.validated = state.get("validated", True)
        self.early.load_state(state.get("early", self.early.state()))

    def run(self) -> Result:
        if self.place.first:
            self._open_folder()
        epochs = self.recipe.optimisation.epochs
        self.model.train()
        if epochs == 0:
            self._finish_epoch(0)
        stopped = not self.validated and not self._finish_epoch(self.step // self.steps.per_epoch - 1)
        while not stopped and self.step < epochs * self.steps.per_epoch:
            if self.early.over:
                self.progress.say(f"ends after epoch {self.step // self.steps.per_epoch}: {self.early}")
                break
            stopped = not self._train_epoch(self.step // self.steps.per_epoch)
        best, cause = self.best.get(self.metric, 0.0), self.stop.cause if stopped else ""
        return Result(self.folder, best, self.last, self.step, stopped, cause, self.place.first, self.report)

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
        step, say, config = self.step if self.resumed else None, self.progress.say, self.recipe.fields()
        names = self.recipe.run.tracker
        self.log = MetricsLog(
            self.folder, step, self.validated, lambda: open_trackers(names, self.folder, step, config, say)
        )

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
        pending: PendingLoss | None = None
        for place_in_epoch in range(first + 1, steps.per_epoch + 1):
            rate = learning_rate(recipe, self.step, steps.per_epoch)
            clips = steps.clips_of(self.step)
            loss, rows = self.optimization.step(batches, self.step, steps, rate, clock)
            current = PendingLoss(Arriving(loss), [self.loader.index.rows[row].path for row in rows], self.step + 1)
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
            if self.stop.agreed() or self.step == self.until:
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
            self.log.write("data", self.step, epoch=epoch + 1, **counts, peak_memory=self.place.peak_memory())
        if validates:
            try:
                scores = self._validate()
            except _Stopped:
                return False
            self.last = {"epoch": min(epoch + 1, recipe.optimisation.epochs), **scores.summary()}
            best = not self.best or self.last[self.metric] > self.best[self.metric]
            self.early.see(self.last)
            if best:
                self.best = dict(self.last)
            if self.log:
                self.log.write("eval", self.step, **self.last)
            self.progress.say(
                f"epoch {self.last['epoch']}/{recipe.optimisation.epochs}: validation {scores.headline}, loss "
                f"{self.last['loss']:.3f} on {self.last['videos']} videos"
            )
        self.validated = True
        self._save(*(("last", "best") if best else ("last",)))
        if self.place.first:
            with drawing(self.folder / CURVES):
                draw_curves(self.folder, None if self.metric == "map" else 1 / len(self.classes))
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

    def _validate(self) -> Evaluation | MultiLabelEvaluation:
        """Scores the validation split, with the averaged tensors where they are kept."""
        place = self.place
        with self.optimization.averages():
            scores = evaluate(
                self.model, self.validation, len(self.classes), place.device, place.autocast, self._leave_when_asked
            )
        recipe, img_size = self.recipe, self.model.img_size
        said = protocol(recipe, "validation", f"centre view of {img_size} px, step {self.step}", place)
        sampling = sampling_of(recipe).validation(img_size)
        index = self.validation.index
        self.report = Report(self.folder, said, self.classes, scores, index, recipe, sampling, img_size)
        return scores

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
            "early": self.early.state(),
            "teacher": self.teacher and self.teacher.sha256,
            **self.optimization.state(),
        }
        save_checkpoint(self.folder / "checkpoints", names, self.optimization.used, state, self.identity)
