"""Scores where a video may have several labels, or none: mean average precision.

The average precision of a class is Σ (R_n − R_{n−1})·P_n over the distinct scores in descending order, with precision
P_n and recall R_n of the videos that score as high (scikit-learn's ``average_precision_score``). The mean is over the
classes that a video has. The loss is the binary cross-entropy of the averaged probabilities, the mean over classes and
videos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """Scores of the videos that can be decoded: ``probabilities`` [videos, classes] float32, ``labels`` the same, int64
    of 0 and 1. ``rows`` [videos] are their numbers in the index; ``excluded`` counts those that cannot be decoded.
    """

    probabilities: Tensor
    labels: Tensor
    rows: Tensor
    excluded: int

    metric: ClassVar[str] = "map"

    @property
    def videos(self) -> int:
        return len(self.labels)

    @property
    def average_precision(self) -> Tensor:
        """float64 [classes], NaN for a class without videos."""
        return torch.stack([_average_precision(*pair) for pair in zip(self.probabilities.T, self.labels.T)])

    @property
    def loss(self) -> float:
        p = self.probabilities.double()
        right = torch.where(self.labels > 0, p, 1 - p).clamp_min(1e-12)
        return -right.log().mean().item() if self.videos else float("nan")

    def summary(self) -> dict[str, float | int]:
        found = self.average_precision.nanmean().item() if self.labels.any() else 0.0
        return {"map": found, "loss": self.loss, "videos": self.videos, "excluded": self.excluded}

    @property
    def figures(self) -> dict[str, float | int]:
        """Those of the summary that are shares, by what a reader calls them."""
        return {"mAP": self.summary()["map"]}

    @property
    def headline(self) -> str:
        return f"mAP {100 * self.summary()['map']:.1f} %"

    def class_rows(self, classes: list[str]) -> list[dict[str, Any]]:
        """One row a class: name, videos that have it, average precision (None without videos)."""
        counts = self.labels.sum(0).tolist()
        return [
            {"class": name, "videos": count, "ap": value if count else None}
            for name, count, value in zip(classes, counts, self.average_precision.tolist())
        ]


def _average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Of one class [] in float64, NaN where no label is 1."""
    order = scores.argsort(descending=True)
    scores, right = scores[order], labels[order].double().cumsum(0)
    last = torch.ones_like(scores, dtype=torch.bool)  # of the videos of one score
    last[:-1] = scores[:-1] != scores[1:]
    right, taken = right[last], last.nonzero()[:, 0].double() + 1
    gained = right.diff(prepend=right.new_zeros(1))
    return (gained * right / taken).sum() / labels.sum()
