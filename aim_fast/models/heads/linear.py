"""The linear head: mean over frames, dropout, classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aim_fast.models.head import Head, Headed, classify, make_classifier, reset_classifier


@dataclass(frozen=True)
class Linear(Head):
    """A classifier of ``num_classes`` on the mean of a clip's frame features; ``head_dropout`` before it."""

    name: ClassVar[str] = "linear"
    line: ClassVar[str] = "a classifier on the mean of the frames' features"

    head_dropout: float = 0.5

    def make(self, model: Headed) -> None:
        make_classifier(model, model.feature_dim, self.num_classes, self.head_dropout)

    def reset(self, model: Headed) -> None:
        reset_classifier(model)

    def logits(self, model: Headed, features: Tensor) -> Tensor:
        return classify(model, features.mean(1))
