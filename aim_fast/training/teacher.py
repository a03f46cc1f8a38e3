"""A trained model that another learns from: its logits of the clips of a step, in the learner's order of classes."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_fast.errors import UsageError
from aim_fast.training.devices import Place
from aim_fast.training.first_start import recall_kernels
from aim_fast.training.recipe import Recipe
from aim_fast.training.run import open_run
from aim_fast.training.trained_model import TrainedModel


class Teacher:
    """A frozen model on a learner's clips, which it sees in its own size and statistics; ``line`` is for a reader."""

    def __init__(self, run: TrainedModel, place: Place, classes: list[str], learner: TrainedModel) -> None:
        self.model, self.place, self.learner = run.model.requires_grad_(False), place, learner.model
        self.columns = torch.tensor([run.classes.index(name) for name in classes], device=place.device)
        digest = hashlib.sha256(run.identity.trunk_sha256.encode())
        for name, tensor in sorted(run.model.trained_tensors().items() or run.model.state_dict().items()):
            digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
        self.sha256 = digest.hexdigest()
        asked = learner.recipe.distillation
        share, temperature = asked.distill_weight, asked.distill_temperature
        self.line = f"learns from {asked.teacher}: {share:g} of the loss, at temperature {temperature:g}"

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Logits [B, classes] of what the learner takes: uint8 clips, or floating ones, mixed, in its normalisation."""
        with self.place.autocast():
            return self.model(self._seen(frames)).float()[:, self.columns]

    def _seen(self, frames: Tensor) -> Tensor:
        size, learner = self.model.img_size, self.learner
        if frames.dtype == torch.uint8:
            if frames.shape[2] == size:
                return frames
            pixels = frames.permute(0, 1, 4, 2, 3).float()  # [B, T, 3, S, S]
        else:
            mean, std = (frames.new_tensor(values)[:, None, None] for values in (learner.mean, learner.std))
            pixels = frames.float().transpose(1, 2) * std + mean
        if pixels.shape[-1] != size:
            resized = F.interpolate(pixels.flatten(0, 1), (size, size), mode="bilinear", antialias=True)
            pixels = resized.unflatten(0, pixels.shape[:2])
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.model.mean, self.model.std))
        return ((pixels - mean) / std).transpose(1, 2)


def open_teacher(recipe: Recipe, place: Place, learner: TrainedModel) -> Teacher | None:
    """The recipe's teacher of ``learner``; None where it names none.

    Raises UsageError for one of other frames, without one of the learner's classes, or of another kind of labels, and
    what opening a run raises.
    """
    path, classes, model = recipe.distillation.teacher, learner.classes, learner.model
    if path is None:
        return None
    run = open_run(path, {}, place, classes)
    if run.model.num_frames != recipe.data.frames:
        raise UsageError(
            f"teacher {path}: takes {run.model.num_frames} frames, not {recipe.data.frames}: train with --frames "
            f"{run.model.num_frames}, or take another teacher"
        )
    if run.recipe.data.multi_label != recipe.data.multi_label:
        kinds = ("one label a clip", "several labels a clip")
        taught, asked = kinds[run.recipe.data.multi_label], kinds[recipe.data.multi_label]
        raise UsageError(f"teacher {path}: was trained on {taught}, and this run has {asked}: take another teacher")
    if lacking := [name for name in classes if name not in run.classes]:
        raise UsageError(
            f"teacher {path}: knows {len(classes) - len(lacking)} of the {len(classes)} classes, not {lacking[0]!r}: "
            "take one that was trained on them all"
        )
    if model.pairs_clips:
        raise UsageError(f"teacher {path}: {recipe.model.model}'s loss compares clips and has no scores to compare")
    recall_kernels(run, place)
    return Teacher(run, place, classes, learner)
