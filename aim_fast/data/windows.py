"""Sliding windows over an untrimmed video, read in one pass: every moment is in at least one window.

Time is a player's, cut into ticks of 1 / rate seconds from the first frame on; at each tick one frame is on the screen.
A video of constant rate has a frame a tick. Of one whose rate varies, frames stay for several ticks or share one, so
that windows are of equal length in seconds all the same.

A window is a span of L consecutive ticks, from which the model's T frames are taken as evaluation takes them: every
interval-th of L = T·interval (dense sampling), or by the uniform rule from L = rate · seconds. Windows start every S
ticks; a last one ends with the video where the others leave ticks over. Only the frames of one span are held, as centre
squares of the model's image size, so that a video of hours takes no more memory than a clip.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat

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

_JITTER = 0.9  # ticks that a frame may be early or late and still have the next one
DEFAULT_SECONDS = 4.0  # about the length of a Something-Something clip, for models without a frame interval


@dataclass(frozen=True)
class Window:
    """Frames ``first`` to ``last`` (inclusive) of a video, shown from ``start`` to ``end`` seconds as a player counts
    them; its clip."""

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
    held: deque[tuple[int, np.ndarray]] = deque()  # (number, square) of the frame at each tick of one span
    count = span = step = covered = 0
    begin, rate = 0.0, 25.0
    for number, frame in enumerate(stream_frames(path, threads=os.cpu_count() or 1)):
        if not span:
            begin, rate = frame.time, frame.rate
            span = _frames(sampling, rate, seconds)
            step = max(round(stride * rate), 1) if stride else max(span // 2, 1)
            plan = plan_clip(1, *frame.size, sampling=_centre(sampling), augmentation=None, img_size=img_size)
        late = (frame.time - begin) * rate - count  # ticks behind the next one
        if late <= -_JITTER:
            continue  # another frame has its tick
        square = resize_box(frame.pixels[None].copy(), plan, img_size)[0]
        stays = round(late) if late >= _JITTER else 0
        for shown in chain(repeat(held[-1] if held else (0, square), stays), [(number, square)]):
            held.append(shown)
            count += 1
            if len(held) > span:
                held.popleft()
            if count >= span and (count - span) % step == 0:
                yield _window(held, count, sampling, begin, rate)
                covered = count
    if not count:
        raise DataError(f"{path} has no frame that decodes; give a whole video file")
    if covered < count:
        yield _window(held, count, sampling, begin, rate)


def _frames(sampling: Sampling, rate: float, seconds: float | None) -> int:
    """Ticks of a window."""
    if sampling.interval is not None:
        return sampling.num_frames * sampling.interval
    return max(round(rate * (seconds or DEFAULT_SECONDS)), sampling.num_frames)


def _centre(sampling: Sampling) -> Sampling:
    return Sampling(sampling.num_frames, short_side=sampling.short_side)


def _window(held: deque[tuple[int, np.ndarray]], count: int, sampling: Sampling, begin: float, rate: float) -> Window:
    indices = frame_indices(Sampling(sampling.num_frames, sampling.interval), len(held))
    squares = torch.from_numpy(np.stack([held[index][1] for index in indices]))
    start, end = (begin + ticks / rate for ticks in (count - len(held), count))
    return Window(held[0][0], held[-1][0], start, end, squares)
