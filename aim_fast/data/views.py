"""Evaluation views of one video, for prediction: a file by PyAV, or frames that are there already; no DALI, no GPU."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch

from aim_fast.data.pixels.decoded_boxes import decoded_boxes
from aim_fast.data.pixels.resize import resize_box
from aim_fast.data.plan.clip_plan import ClipPlan, plan_clip
from aim_fast.data.plan.sampling import Sampling
from aim_fast.data.video.picture import display_size
from aim_fast.data.video.probe import MISSING, ONE_FRAME, probe
from aim_fast.errors import DataError

__all__ = ["ARRAY", "Video", "load_views"]

ARRAY = ".npy"  # what the name of an array's file ends in
Video = str | os.PathLike[str] | np.ndarray | torch.Tensor


def load_views(video: Video, sampling: Sampling, img_size: int = 224, *, allow_short: bool = False) -> torch.Tensor:
    """uint8 [V, T, S, S, 3] RGB on the CPU: every view of ``sampling`` of a video.

    Args:
        video: any file that PyAV reads, turned and mirrored as its metadata asks, or frames as an array or tensor uint8
            [F, H, W, 3] RGB, or such an array's ``.npy`` file.
        sampling: T, how frames are taken, and the views: V = clips × crops.
        img_size: S.
        allow_short: repeat frames of a video with fewer than T, by the published rule, instead of refusing it.

    Raises:
        DataError: missing, empty, truncated, not a video, without a video stream, a single frame, or fewer than T; an
        array of another shape or dtype.
    """
    if isinstance(video, (np.ndarray, torch.Tensor)):
        return _of_array("the array", video, sampling, img_size, allow_short)
    path = os.fspath(video)
    if path.lower().endswith(ARRAY) and not os.path.isdir(path):
        return _of_array(path, _read_array(path), sampling, img_size, allow_short)
    found = probe(path)
    if found.error == MISSING:
        raise DataError(f"{path} does not exist; check the path")
    if found.error is not None and not (found.error == ONE_FRAME and allow_short):
        raise DataError(f"{path} {found.error}; give a whole video file")
    size = display_size(found.height, found.width, found.aspect, found.rotation)

    def boxes(plans: list[ClipPlan]) -> list[np.ndarray]:
        return decoded_boxes(path, plans, img_size, threads=os.cpu_count() or 1, seek=found.seekable)

    return _views(path, found.frames, size, sampling, img_size, allow_short, boxes)


def _read_array(path: str) -> np.ndarray:
    """The array of a ``.npy`` file, of which no more is read than is asked for."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path") from None
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "not one, or not all of it"
        raise DataError(f"{path} cannot be read as an array: {reason}; write it by numpy.save") from None


def _of_array(
    name: str, array: np.ndarray | torch.Tensor, sampling: Sampling, img_size: int, allow_short: bool
) -> torch.Tensor:
    kind = f"{array.dtype}".removeprefix("torch.")
    if kind != "uint8" or array.ndim != 4 or array.shape[-1] != 3 or not all(array.shape):
        raise DataError(f"{name} is {kind} {list(array.shape)}; give uint8 [T, H, W, 3] RGB, with values up to 255")

    def boxes(plans: list[ClipPlan]) -> list[np.ndarray]:
        return [resize_box(_frames(array, plan.frames), plan, img_size) for plan in plans]

    frames, height, width, _ = array.shape
    return _views(name, frames, (height, width), sampling, img_size, allow_short, boxes)


def _frames(array: np.ndarray | torch.Tensor, numbers: np.ndarray) -> np.ndarray | torch.Tensor:
    """A copy of the numbered frames on the CPU."""
    if isinstance(array, torch.Tensor):
        return array.detach()[torch.from_numpy(numbers).long().to(array.device)].cpu()
    return np.ascontiguousarray(array[numbers])


def _views(
    name: str,
    frames: int,
    size: tuple[int, int],
    sampling: Sampling,
    img_size: int,
    allow_short: bool,
    boxes: Callable[[list[ClipPlan]], list[np.ndarray]],
) -> torch.Tensor:
    """The views of a video of so many frames, ``size`` (height, width); ``boxes`` makes those of their plans."""
    if frames < sampling.num_frames and not allow_short:
        raise DataError(
            f"{name} has {frames} frames but the model takes {sampling.num_frames}; "
            "give a longer video or a model of fewer frames"
        )
    plans = [
        plan_clip(frames, *size, sampling=sampling, augmentation=None, img_size=img_size, view=view)
        for view in range(sampling.views)
    ]
    return torch.stack([torch.from_numpy(made[plan.order]) for made, plan in zip(boxes(plans), plans)])
