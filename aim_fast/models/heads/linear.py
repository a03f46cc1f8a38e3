"""The linear head: mean over frames, dropout, classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from aim_fast.models.head import Classifier

if TYPE_CHECKING:
    from torch import Tensor

    from aim_fast.models.headed import Headed


@dataclass(frozen=True)
class Linear(Classifier):
    """A classifier of ``num_classes`` on the mean of a clip's frame features; ``head_dropout`` before it."""

    name: ClassVar[str] = "linear"
    line: ClassVar[str] = "a classifier on the mean of the frames' features"

    def logits(self, model: Headed, features: Tensor) -> Tensor:
        return model.classify(features.mean(1))
