"""A model with its weights: what building one from a recipe gives, and opening a run or a file of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from aim_fast.errors import UsageError
from aim_fast.models.identity import Identity
from aim_fast.models.video_model import VideoModel
from aim_fast.training.devices import Place
from aim_fast.training.evaluation import class_probabilities
from aim_fast.training.recipe import Recipe
from aim_kernels import AIMBlock, AIMSwinBlock, hold_trunk


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

    def probabilities(self, logits: Tensor) -> Tensor:
        """float32 [..., classes] of logits: they add up to 1, but where clips may have several labels."""
        return class_probabilities(logits, self.recipe.data.multi_label)

    def with_classes(self, classes: Sequence[str]) -> TrainedModel:
        """The same under other class names; a model that reads them is given them by ``set_classes``."""
        return replace(self, identity=replace(self.identity, classes=list(classes), options=self.model.config))


def move_to_place(model: VideoModel, place: Place) -> list[str]:
    """Puts a model on its device, its trunk in the precision that it is computed in; its classes are read there.

    Returns what is worth saying about it. Raises UsageError for a model without anything to be held in fp8.
    """
    hold_trunk(model.to(place.device), place.trunk or place.dtype)
    lines = [] if place.trunk is None else [_scaled_products(model, place)]
    if model.takes_class_names and model.class_names:
        model.set_classes(model.class_names)
    return lines


def _scaled_products(model: VideoModel, place: Place) -> str:
    """How many of the trunk's weights are there in fp8."""
    blocks = [block for block in model.modules() if isinstance(block, (AIMBlock, AIMSwinBlock))]
    fused = [weight is not None for block in blocks if block.backend == "fused" for weight in block.scaled]
    if not any(fused):
        raise UsageError(
            "precision fp8 is for the products of a frozen trunk, of which this model's blocks run none: their weights "
            "train, or backend is reference; use --precision bf16"
        )
    rest = "" if all(fused) else "; the others, which train or have a side that 16 does not divide, in bf16"
    slow = "; on a CPU they are float32 products of the same numbers" if place.device.type == "cpu" else ""
    return f"{sum(fused)} of the trunk's {len(fused)} weights are multiplied in fp8{rest}{slow}"
