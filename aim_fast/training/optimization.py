"""What a step does to the trained tensors: forward, loss, backward over several batches, AdamW, moving average.

Every random number of a step is a function of (seed, step, batch, rank), so a step computes the same whatever was
computed before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aim_fast.errors import UsageError
from aim_fast.models.video_model import VideoModel
from aim_fast.training.checkpoint import copy_values
from aim_fast.training.clock import Clock
from aim_fast.training.cuda_graph import GraphedStep, captures, set_capturable
from aim_fast.training.devices import Place
from aim_fast.training.losses import distillation_losses, multi_label_losses
from aim_fast.training.optimizer import build_optimizer, set_learning_rate
from aim_fast.training.recipe import Recipe
from aim_fast.training.steps import Steps, step_seed

if TYPE_CHECKING:  # a step needs no video library
    from aim_fast.data import Batch

_AT_ONCE = 250 * 2**20  # bytes


class Optimization:
    """One process's part in training a model: its replica, optimiser, gradient scaler and moving average.

    ``trainable`` are the tensors that train, by name; ``averaged`` their moving averages where the recipe keeps them,
    else empty; ``statistics`` the running means and variances of batch norms that train, synchronised on GPUs. ``say``
    is given a line on how steps run, where that is found out in the first of them. ``weights`` [classes] are those of
    ``class_weights``, ``teacher`` gives the logits that the recipe's distillation takes of clips.
    """

    def __init__(
        self,
        model: VideoModel,
        recipe: Recipe,
        place: Place,
        num_classes: int,
        say: Callable[[str], None] = lambda line: None,
        weights: Tensor | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.recipe, self.place = model, recipe, place
        self.multi_label, self.teacher = recipe.data.multi_label, teacher
        self.class_weights = None if weights is None else weights.to(place.device)
        if (self.multi_label or teacher) and (model.pairs_clips or type(model).candidates is not VideoModel.candidates):
            what = "multi_label" if self.multi_label else "a teacher"
            raise UsageError(f"{recipe.model.model} scores some classes of a step, by its labels: leave {what} out")
        self.mixup = _mixup(model, recipe, num_classes)
        self.trainable: dict[str, nn.Parameter] = dict(model.trainable_parameters())
        self.averaged = {k: v.detach().clone() for k, v in self.trainable.items()} if recipe.optimisation.ema else {}
        if place.world > 1 and place.device.type == "cuda":  # torch has none for a CPU
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.statistics = model.trained_statistics()
        self.optimizer = build_optimizer(model, recipe)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.dtype is torch.float16)
        graphs = captures(recipe.run.cuda_graph, place, self.trainable.values())
        self.flat = self._flat_step(say) if graphs else None
        self.replica = _replicate(model, recipe, place, alone=place.world == 1 or self.flat is not None)

    def _flat_step(self, say: Callable[[str], None]) -> GraphedStep:
        """Takes the steps where they may be captured, in place of DistributedDataParallel, which cannot be."""
        world, clip_norm = self.place.world, self.recipe.optimisation.clip_norm
        if world > 1:  # as DistributedDataParallel begins
            tensors = [tensor.detach() for tensor in (*self.model.parameters(), *self.model.buffers())]
            dist._broadcast_coalesced(dist.distributed_c10d._get_default_group(), tensors, _AT_ONCE, 0)
        return GraphedStep(
            lambda *x: self._losses(*x).sum(),
            self.optimizer,
            list(self.trainable.values()),
            clip_norm,
            self.scaler,
            world,
            self._average,
            choose=self.recipe.run.cuda_graph == "auto",
            say=say,
        )

    def step(
        self, batches: Iterator[Batch], number: int, steps: Steps, rate: float, clock: Clock
    ) -> tuple[Tensor, list[int]]:
        """Step ``number`` over this process's share of its clips, at a learning rate: its loss [] on the device, summed
        over the share and divided by the clips of the step, and the rows of the index that it took."""
        set_learning_rate(self.optimizer, rate)
        clips, count = steps.clips_of(number), steps.batches_of(number)
        total = torch.zeros((), device=self.place.device)
        rows: list[int] = []
        for part in range(count):
            with clock.wait():
                batch = next(batches)
            seed = step_seed(self.recipe.run.seed, number, part, self.place.rank)
            torch.manual_seed(seed)
            frames, labels, weights, *others = self.inputs(batch, seed, number // steps.per_epoch)
            if self.teacher:
                others.append(self.teacher(frames))
            rows += batch.indices.tolist()
            if self.flat:
                total += self.flat.accumulate(frames, labels, weights / clips, *others)
                continue
            replica, more = self.replica, part < count - 1
            with replica.no_sync() if isinstance(replica, DistributedDataParallel) and more else nullcontext():
                # a mean over the clips of the step; DistributedDataParallel divides by the number of processes
                loss = self._losses(frames, labels, weights, *others).sum() / clips
                self.scaler.scale(loss * self.place.world).backward()
            total += loss.detach()
        if self.flat:
            self.flat.finish()
        else:
            self._apply_gradients()
        if self.place.world > 1:  # synchronised batch norms have the same in every process
            for statistic in self.statistics.values():
                dist.all_reduce(statistic)
                statistic /= self.place.world
        return total, rows

    @property
    def settled(self) -> bool:
        """Whether all steps from here on run alike."""
        return self.flat is None or self.flat.settled

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the tensors that a model is used with."""
        raw = {name: tensor.detach().cpu() for name, tensor in self.trainable.items()} if self.averaged else None
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "trainable": raw}

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Goes on from a ``state`` and the ``tensors`` saved with it."""
        trained = state["trainable"] or tensors
        copy_values(self.trainable, {name: trained[name] for name in self.trainable})
        copy_values(self.averaged, {name: tensors[name] for name in self.averaged})
        copy_values(self.statistics, {name: tensors[name] for name in self.statistics})
        self.optimizer.load_state_dict(state["optimizer"])
        set_capturable(self.optimizer, self.flat is not None)
        if self.flat:
            self.flat.forget()  # what it holds reads the tensors of before
        self.scaler.load_state_dict(state["scaler"])

    @property
    def used(self) -> dict[str, Tensor]:
        """The tensors that a model is used with: the averages where they are kept, and statistics of batch norms."""
        return (self.averaged or {name: tensor.detach() for name, tensor in self.trainable.items()}) | self.statistics

    def split_matters(self, steps: Steps) -> str:
        """What in a step depends on how its clips are split over batches and processes; empty where nothing does."""
        apart = self.place.world > 1 and self.place.device.type != "cuda"  # batch norms of the processes
        if self.statistics and (steps.accumulate > 1 or apart):
            return "batch norms see the clips that are taken at a time"
        pairs = self.model.pairs_clips and steps.accumulate > 1
        return "the loss compares the clips that are taken at a time" if pairs else ""

    @contextmanager
    def averages(self) -> Iterator[None]:
        """A block in which the model holds the averaged tensors, where they are kept."""
        raw = {name: tensor.detach().clone() for name, tensor in self.trainable.items()} if self.averaged else {}
        copy_values(self.trainable, self.averaged)
        try:
            yield
        finally:
            copy_values(self.trainable, raw)

    def _apply_gradients(self) -> None:
        if self.recipe.optimisation.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(list(self.trainable.values()), self.recipe.optimisation.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.graph.increment_version(self.trainable.values())  # which a fused optimiser does not
        self._average()

    def _average(self) -> None:
        if self.averaged:
            averaged, raw = list(self.averaged.values()), [p.detach() for p in self.trainable.values()]
            torch._foreach_lerp_(averaged, raw, 1 - self.recipe.optimisation.ema)

    def inputs(self, batch: Batch, seed: int, epoch: int = 0) -> list[Tensor]:
        """Frames, labels and weights on the device, mixed where the recipe mixes clips, and the model's own inputs.

        Where a step scores some of the classes alone, they are the fourth, and labels are places among them.
        """
        frames, labels, weights = (
            t.to(self.place.device, non_blocking=True) for t in (batch.frames, batch.labels, batch.weights)
        )
        if self.mixup:
            np.random.seed(seed % 2**32)  # noqa: NPY002 - timm's Mixup draws from the global generator
            frames = self.model.normalize(frames)  # [B, 3, T, H, W]
            images, labels = self.mixup(frames.flatten(1, 2), labels)
            frames = images.view_as(frames)
        if self.class_weights is not None and not self.multi_label:
            shares = self.class_weights[labels] if labels.ndim == 1 else labels @ self.class_weights
            weights = weights * shares
        if not self.mixup and (classes := self.model.candidates(labels, seed)) is not None:
            return [frames, torch.searchsorted(classes, labels), weights, classes]
        draws = torch.tensor([step_seed(self.recipe.run.seed, epoch, row) for row in batch.indices.tolist()])
        return [frames, labels, weights, *self.model.step_inputs(labels, draws)]

    def _losses(self, frames: Tensor, labels: Tensor, weights: Tensor, *inputs: Tensor) -> Tensor:
        """The weighted loss of each clip [B]: zero for the clips that only fill a batch up.

        Where there is a teacher, its logits are the last of ``inputs``.
        """
        smoothing = 0.0 if self.mixup else self.recipe.augmentation.label_smoothing
        own = inputs[:-1] if self.teacher else inputs
        with self.place.autocast():
            logits = self.replica(frames, *own)
        if self.multi_label:
            losses = multi_label_losses(logits, labels, smoothing, self.class_weights) * weights
        else:
            losses = self.model.losses(logits, labels, weights, smoothing)
        if self.teacher:
            asked = self.recipe.distillation
            taught = distillation_losses(logits, inputs[-1], asked.distill_temperature, self.multi_label) * weights
            losses = losses.lerp(taught, asked.distill_weight)
        return losses


def _replicate(model: VideoModel, recipe: Recipe, place: Place, alone: bool) -> nn.Module:
    """The model as a step calls it: compiled where asked for, its gradients averaged unless it is ``alone``."""
    replica = cast(nn.Module, torch.compile(model)) if recipe.run.compile else model  # its type says a function
    if not alone:
        devices = [place.device.index] if place.device.type == "cuda" else None
        replica = DistributedDataParallel(
            replica, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    return replica


def _mixup(model: VideoModel, recipe: Recipe, num_classes: int) -> Any:
    asked = recipe.augmentation
    count = recipe.optimisation.batch_size * asked.aug_repeats
    if model.pairs_clips and (asked.mixup or asked.cutmix or asked.label_smoothing):
        raise UsageError(
            "a loss between the clips of a batch takes whole labels: leave mixup, cutmix and label_smoothing out"
        )
    if not asked.mixup and not asked.cutmix:
        return None
    if recipe.data.features:
        raise UsageError("mixup and cutmix mix pixels, and --features has none: leave one of them out")
    if count % 2:
        raise UsageError(
            f"mixup and cutmix pair the clips of a batch: batch_size {recipe.optimisation.batch_size} must be even"
        )
    from timm.data import Mixup

    return Mixup(asked.mixup, asked.cutmix, label_smoothing=asked.label_smoothing, num_classes=num_classes)
