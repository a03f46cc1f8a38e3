"""The most probable classes of a video: a run's model on the views of a file or an array, averaged."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aim_fast.data import load_views
from aim_fast.data.views import Video
from aim_fast.errors import DataError, UsageError
from aim_fast.training.clips import sampling_of
from aim_fast.training.devices import Place
from aim_fast.training.trained_model import TrainedModel


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one video or of a window of it, the best first, or why there are none.

    Attributes:
        video: its path as it was given; ``array`` for frames; an address without its password.
        labels: names of classes.
        probabilities: of these, averaged over the views.
        error: the reason, one line, where the video cannot be read; there are no labels then.
        start, end: seconds that a window is shown from and to; None for a video as a whole.
    """

    video: str
    labels: list[str]
    probabilities: list[float]
    error: str | None = None
    start: float | None = None
    end: float | None = None

    @property
    def label(self) -> str:
        """The most probable class. Raises DataError where there is none."""
        if self.error:
            raise DataError(self.error)
        return self.labels[0]

    def to_dict(self) -> dict[str, Any]:
        """``{"video", "predictions": [{"label", "probability"}]}``, of a window with ``start`` and ``end``, or
        ``{"video", "error"}``."""
        if self.error:
            return {"video": self.video, "error": self.error}
        pairs = zip(self.labels, self.probabilities)
        rows = [{"label": label, "probability": probability} for label, probability in pairs]
        times = {} if self.start is None else {"start": self.start, "end": self.end}
        return {"video": self.video, **times, "predictions": rows}


def name_of(video: Video) -> str:
    """By which a video is known in what is printed."""
    return "array" if isinstance(video, (np.ndarray, Tensor)) else os.fspath(video)


def predict_video(run: TrainedModel, place: Place, video: Video, top_k: int, repeat_frames: bool) -> Prediction:
    """The classes of one video, by a model that is on its place. Raises DataError for a video that cannot be read."""
    views = load_views(video, sampling_of(run.recipe), run.model.img_size, allow_short=repeat_frames)
    mean = probabilities(run, place, views).mean(0)
    return Prediction(name_of(video), *most_probable(run.classes, mean, top_k))


@torch.inference_mode()
def probabilities(run: TrainedModel, place: Place, clips: Tensor) -> Tensor:
    """float32 [B, classes] on the place's device, of clips uint8 [B, T, S, S, 3]."""
    with place.autocast():
        logits = run.model(clips.to(place.device))
    return run.probabilities(logits)


def most_probable(classes: Sequence[str], values: Tensor, top_k: int) -> tuple[list[str], list[float]]:
    """Names and probabilities of the ``top_k`` classes, or of all where there are fewer. Raises UsageError."""
    if top_k < 1:
        raise UsageError(f"top_k is {top_k}: give at least 1")
    best = values.topk(min(top_k, len(classes)))
    return [classes[index] for index in best.indices.tolist()], best.values.tolist()
