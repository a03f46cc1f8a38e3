"""Calibration: how often a model is right where it is so sure (Guo et al., ICML 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aim_fast.training.evaluation import Evaluation
from aim_fast.training.multi_label_evaluation import MultiLabelEvaluation

__all__ = ["Calibration"]

_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Of the videos in each of 15 equal bins of confidence that has some: mean confidence, top-1, how many.

    Where videos may have several labels every class of every video counts: its probability, and whether it is there.
    """

    confidence: list[float]
    top1: list[float]
    videos: list[int]

    @classmethod
    def of(cls, scores: Evaluation | MultiLabelEvaluation) -> Calibration:
        if isinstance(scores, MultiLabelEvaluation):
            confidence, right = scores.probabilities.double().flatten(), scores.labels.double().flatten()
        else:
            confidence, predicted = scores.probabilities.double().max(1)
            right = (predicted == scores.labels).double()
        place = (confidence * _BINS).long().clamp(0, _BINS - 1)
        counts = torch.bincount(place, minlength=_BINS)
        means = [torch.bincount(place, values, _BINS) / counts.clamp_min(1) for values in (confidence, right)]
        kept = counts > 0
        return cls(means[0][kept].tolist(), means[1][kept].tolist(), counts[kept].tolist())

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over videos of |top-1 − confidence| of their bin."""
        gaps = [abs(a - b) * n for a, b, n in zip(self.confidence, self.top1, self.videos)]
        return sum(gaps) / max(sum(self.videos), 1)
