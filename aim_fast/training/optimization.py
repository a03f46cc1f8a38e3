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
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aim_fast.errors import UsageError
from aim_fast.models.video_model import VideoModel
from aim_fast.training.checkpoint import copy_values
from aim_fast.training.clock import Clock
from aim_fast.training.cuda_graph import GraphedStep, captures, set_capturable
from aim_fast.training.devices import Place
from aim_fast.training.optimizer import build_optimizer, set_learning_rate
from aim_fast.training.recipe import Recipe
from aim_fast.training.steps import Steps, step_seed

if TYPE_CHECKING:  # a step needs no video library
    from aim_fast.data import Batch

_AT_ONCE = 250 * 2**20  # bytes


class Optimization:
    """One process's part in training a model: its replica, optimiser, gradient scaler and moving average.

    ``trainable`` are the tensors that train, by name; ``averaged`` their moving averages where the recipe keeps them,
    else empty. ``say`` is given a line on how steps run, where that is found out in the first of them.
    """

    def __init__(
        self,
        model: VideoModel,
        recipe: Recipe,
        place: Place,
        num_classes: int,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.model, self.recipe, self.place = model, recipe, place
        self.mixup = _mixup(recipe, num_classes)
        self.trainable: dict[str, nn.Parameter] = dict(model.trainable_parameters())
        self.averaged = {k: v.detach().clone() for k, v in self.trainable.items()} if recipe.optimisation.ema else {}
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
            frames, labels, weights, *classes = self.inputs(batch, seed)
            rows += batch.indices.tolist()
            if self.flat:
                total += self.flat.accumulate(frames, labels, weights / clips, *classes)
                continue
            replica, more = self.replica, part < count - 1
            with replica.no_sync() if isinstance(replica, DistributedDataParallel) and more else nullcontext():
                # a mean over the clips of the step; DistributedDataParallel divides by the number of processes
                loss = self._losses(frames, labels, weights, *classes).sum() / clips
                self.scaler.scale(loss * self.place.world).backward()
            total += loss.detach()
        if self.flat:
            self.flat.finish()
        else:
            self._apply_gradients()
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
        copy_values(self.trainable, state["trainable"] or tensors)
        copy_values(self.averaged, tensors if self.averaged else {})
        self.optimizer.load_state_dict(state["optimizer"])
        set_capturable(self.optimizer, self.flat is not None)
        if self.flat:
            self.flat.forget()  # what it holds reads the tensors of before
        self.scaler.load_state_dict(state["scaler"])

    @property
    def used(self) -> dict[str, Tensor]:
        """The tensors that a model is used with: the averages where they are kept."""
        return self.averaged or {name: tensor.detach() for name, tensor in self.trainable.items()}

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

    def inputs(self, batch: Batch, seed: int) -> list[Tensor]:
        """Frames, labels and weights on the device, mixed where the recipe mixes clips.

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
        elif (classes := self.model.candidates(labels, seed)) is not None:
            return [frames, torch.searchsorted(classes, labels), weights, classes]
        return [frames, labels, weights]

    def _losses(self, frames: Tensor, labels: Tensor, weights: Tensor, *classes: Tensor) -> Tensor:
        """Weighted cross-entropy of each clip [B]: zero for the clips that only fill a batch up."""
        smoothing = 0.0 if self.mixup else self.recipe.augmentation.label_smoothing
        with self.place.autocast():
            logits = self.replica(frames, *classes)
        return F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing) * weights


def _replicate(model: VideoModel, recipe: Recipe, place: Place, alone: bool) -> nn.Module:
    """The model as a step calls it: compiled where asked for, its gradients averaged unless it is ``alone``."""
    replica = cast(nn.Module, torch.compile(model)) if recipe.run.compile else model  # its type says a function
    if not alone:
        devices = [place.device.index] if place.device.type == "cuda" else None
        replica = DistributedDataParallel(
            replica, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    return replica


def _mixup(recipe: Recipe, num_classes: int) -> Any:
    asked, count = recipe.augmentation, recipe.optimisation.batch_size
    if not asked.mixup and not asked.cutmix:
        return None
    if recipe.data.features:
        raise UsageError("mixup and cutmix mix pixels, and --features has none: leave one of them out")
    if count % 2:
        raise UsageError(f"mixup and cutmix pair the clips of a batch: batch_size {count} must be even")
    from timm.data import Mixup

    return Mixup(asked.mixup, asked.cutmix, label_smoothing=asked.label_smoothing, num_classes=num_classes)
