"""Sliding windows over an untrimmed video, read in one pass: every frame is in at least one window.

A window is a span of consecutive frames, L, from which the model's T frames are taken as evaluation takes them: every
interval-th of L = T·interval frames (dense sampling), or by the uniform rule from L = rate · seconds. Windows start
every S frames; a last one ends with the video where the others leave frames over. Only the frames of one span are held,
as centre squares of the model's image size, so that a video of hours takes no more memory than a clip.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from aim_fast.data.pixels.resize import resize_box
from aim_fast.data.plan.clip_plan import plan_clip
from aim_fast.data.plan.sampling import Sampling, frame_indices
from aim_fast.data.video.decode import stream_frames
from aim_fast.data.video.probe import file_state
from aim_fast.data.video.truncation import missing_bytes
from aim_fast.errors import DataError, UsageError

__all__ = ["Window", "read_windows"]

DEFAULT_SECONDS = 4.0  # about the length of a Something-Something clip, for models without a frame interval


@dataclass(frozen=True)
class Window:
    """Frames ``first`` to ``last`` (inclusive) of a video, shown from ``start`` to ``end`` seconds; its clip."""

    first: int
    last: int
    start: float
    end: float
    frames: torch.Tensor  # uint8 [T, S, S, 3]


def read_windows(
    path: str | os.PathLike[str],
    sampling: Sampling,
    img_size: int = 224,
    *,
    seconds: float | None = None,
    stride: float | None = None,
) -> Iterator[Window]:
    """The windows of a video in order of time.

    Args:
        path: any video that PyAV reads, of any length.
        sampling: T and the frame interval; its views are not used: a window is one centre crop.
        img_size: S.
        seconds: length of a window; a dense sampling has its own and takes none. Default 4.
        stride: seconds between the starts of windows; half a window when not given.

    Raises:
        UsageError: lengths that cannot be. DataError: a file that cannot be read or ends before its time; what was
        yielded before stands.
    """
    path = os.fspath(path)
    if sampling.interval is not None and seconds is not None:
        raise UsageError(f"the model samples every {sampling.interval} frames, which sets its window: leave it out")
    for name, value in (("window", seconds), ("stride", stride)):
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{name} is {value} seconds: give a length above 0")
    size, _ = file_state(path)
    if size < 0:
        raise DataError(f"{path} does not exist; check the path")
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes); give a whole video file")
    if lost := missing_bytes(path):
        raise DataError(f"{path} is truncated: {lost} bytes are missing at its end; give a whole video file")
    held: deque[tuple[float, np.ndarray]] = deque()  # (time, square) of the frames of one span
    count = span = step = covered = 0
    rate = 25.0
    for time, rate, pixels in stream_frames(path, threads=os.cpu_count() or 1):
        if not span:
            span = _frames(sampling, rate, seconds)
            step = max(round(stride * rate), 1) if stride else max(span // 2, 1)
            plan = plan_clip(1, *pixels.shape[:2], sampling=_centre(sampling), augmentation=None, img_size=img_size)
        held.append((count / rate if time is None else time, resize_box(pixels[None].copy(), plan, img_size)[0]))
        count += 1
        if len(held) > span:
            held.popleft()
        if count >= span and (count - span) % step == 0:
            yield _window(held, count, sampling, rate)
            covered = count
    if not count:
        raise DataError(f"{path} has no frame that decodes; give a whole video file")
    if covered < count:
        yield _window(held, count, sampling, rate)


def _frames(sampling: Sampling, rate: float, seconds: float | None) -> int:
    """Frames of a window."""
    if sampling.interval is not None:
        return sampling.num_frames * sampling.interval
    return max(round(rate * (seconds or DEFAULT_SECONDS)), sampling.num_frames)


def _centre(sampling: Sampling) -> Sampling:
    return Sampling(sampling.num_frames, short_side=sampling.short_side)


def _window(held: deque[tuple[float, np.ndarray]], count: int, sampling: Sampling, rate: float) -> Window:
    indices = frame_indices(Sampling(sampling.num_frames, sampling.interval), len(held))
    squares = torch.from_numpy(np.stack([held[index][1] for index in indices]))
    return Window(count - len(held), count - 1, held[0][0], held[-1][0] + 1 / rate, squares)
