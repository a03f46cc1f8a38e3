"""A model with its weights: what building one from a recipe gives, and opening a run or a file of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aim_fast.models.identity import Identity
from aim_fast.models.video_model import VideoModel
from aim_fast.training.devices import Place
from aim_fast.training.recipe import Recipe
from aim_kernels import hold_trunk


@dataclass(frozen=True)
class TrainedModel:
    """A model, what it is, and the recipe that it came from or is about to be trained by.

    ``source``: the checkpoint's folder or the file that it was read from, or of a new one its trunk's weights.
    ``lines``: what is worth saying about its weights, one sentence each.
    """

    model: VideoModel
    identity: Identity
    recipe: Recipe
    source: str
    lines: list[str]

    @property
    def classes(self) -> list[str]:
        return self.identity.classes

    def with_classes(self, classes: Sequence[str]) -> TrainedModel:
        """The same under other class names; a model that reads them is given them by ``set_classes``."""
        return replace(self, identity=replace(self.identity, classes=list(classes), options=self.model.config))


def move_to_place(model: VideoModel, place: Place) -> None:
    """Puts a model on its device, its trunk in the precision that it is computed in; its classes are read there."""
    hold_trunk(model.to(place.device), place.dtype)
    if model.takes_class_names and model.class_names:
        model.set_classes(model.class_names)
