"""Evaluation views of one video file, for prediction: PyAV and PyTorch only."""

from __future__ import annotations

import os

import torch

from aim_fast.data.pixels.decoded_boxes import decoded_boxes
from aim_fast.data.plan.clip_plan import plan_clip
from aim_fast.data.plan.sampling import Sampling
from aim_fast.data.video.picture import display_size
from aim_fast.data.video.probe import MISSING, ONE_FRAME, probe
from aim_fast.errors import DataError

__all__ = ["load_views"]


def load_views(
    path: str | os.PathLike[str], sampling: Sampling, img_size: int = 224, *, allow_short: bool = False
) -> torch.Tensor:
    """uint8 [V, T, S, S, 3] RGB: every view of ``sampling`` of a video, turned and mirrored as its metadata asks.

    Args:
        path: any video that PyAV reads.
        sampling: T, how frames are taken, and the views: V = clips × crops.
        img_size: S.
        allow_short: repeat frames of a video with fewer than T, by the published rule, instead of refusing it.

    Raises:
        DataError: missing, empty, truncated, not a video, without a video stream, a single frame, or fewer than T.
    """
    path = os.fspath(path)
    found = probe(path)
    if found.error == MISSING:
        raise DataError(f"{path} does not exist; check the path")
    if found.error is not None and not (found.error == ONE_FRAME and allow_short):
        raise DataError(f"{path} {found.error}; give a whole video file")
    if found.frames < sampling.num_frames and not allow_short:
        raise DataError(
            f"{path} has {found.frames} frames but the model takes {sampling.num_frames}; "
            "give a longer video or a model of fewer frames"
        )
    height, width = display_size(found.height, found.width, found.aspect, found.rotation)
    plans = [
        plan_clip(found.frames, height, width, sampling=sampling, augmentation=None, img_size=img_size, view=view)
        for view in range(sampling.views)
    ]
    boxes = decoded_boxes(path, plans, img_size, threads=os.cpu_count() or 1, seek=found.seekable)
    return torch.stack([torch.from_numpy(frames[plan.order]) for frames, plan in zip(boxes, plans)])
