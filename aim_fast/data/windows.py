"""Sliding windows over an untrimmed video, read in one pass: every moment is in at least one window.

Time is a player's, cut into ticks of 1 / rate seconds from the first frame on; at each tick one frame is on the screen.
A video of constant rate has a frame a tick. Of one whose rate varies, frames stay for several ticks or share one, so
that windows are of equal length in seconds all the same.

A window is a span of L consecutive ticks, from which the model's T frames are taken as evaluation takes them: every
interval-th of L = T·interval (dense sampling), or by the uniform rule from L = rate · seconds. Windows start every S
ticks; a last one ends with the video where the others leave ticks over, or where windows are ``aligned`` starts S ticks
on as all do, and repeats the video's last frame. Only the frames of one span are held, as centre squares of the model's
image size, so that a video of hours takes no more memory than a clip.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Literal, NamedTuple

import numpy as np
import torch

from aim_fast.data.pixels.resize import resize_box
from aim_fast.data.plan.clip_plan import ClipPlan, plan_clip
from aim_fast.data.plan.sampling import Sampling, frame_indices
from aim_fast.data.video.decode import ShownFrame, stream_frames
from aim_fast.data.video.probe import file_state
from aim_fast.data.video.truncation import missing_bytes
from aim_fast.errors import DataError, UsageError

__all__ = ["Length", "Window", "check_lengths", "read_windows", "slide"]

_JITTER = 0.9  # ticks that a frame may be early or late and still have the next one
DEFAULT_SECONDS = 4.0  # about the length of a Something-Something clip, for models without a frame interval


class Length(NamedTuple):
    """A stretch of time, in seconds or in ticks of a video, which are its frames where their rate is constant."""

    amount: float
    unit: Literal["seconds", "frames"] = "seconds"

    @classmethod
    def of(cls, length: float | Length) -> Length:
        """Plain numbers are seconds."""
        return length if isinstance(length, Length) else cls(length)

    def ticks(self, rate: float) -> int:
        """At so many ticks a second; 1 at least."""
        return max(round(self.amount * (rate if self.unit == "seconds" else 1)), 1)


@dataclass(frozen=True)
class Window:
    """Frames ``first`` to ``last`` (inclusive) of a video, shown from ``start`` to ``end`` seconds as a player counts
    them; its clip. ``tick`` is that of its start, of ``rate`` a second, ``ticks`` how many of it are the video's, and
    ``taken`` int64 [T] those of its frames, from its start on."""

    first: int
    last: int
    start: float
    end: float
    frames: torch.Tensor  # uint8 [T, S, S, 3]
    tick: int
    ticks: int
    taken: np.ndarray
    rate: float


_NOTHING = np.zeros((0, 0, 3), np.uint8)


class _Shown:
    """A frame by its number: whole while it is the last one, and its square [S, S, 3] where a window takes it."""

    def __init__(self, number: int, whole: np.ndarray) -> None:
        self.number, self.whole = number, whole
        self.square: np.ndarray | None = None

    def cut(self, plan: ClipPlan, img_size: int) -> None:
        if self.square is None:
            self.square = resize_box(self.whole[None], plan, img_size)[0]


def read_windows(
    path: str | os.PathLike[str],
    sampling: Sampling,
    img_size: int = 224,
    *,
    seconds: float | Length | None = None,
    stride: float | Length | None = None,
    aligned: bool = False,
    threads: int | None = None,
) -> Iterator[Window]:
    """The windows of a video in order of time.

    Args:
        path: any video that PyAV reads, of any length.
        sampling: T and the frame interval; its views are not used: a window is one centre crop.
        img_size: S.
        seconds: length of a window; a dense sampling has its own and takes none. Default 4 seconds.
        stride: from the start of a window to that of the next; half a window when not given.
        aligned: all windows start at a multiple of the stride.
        threads: that decode the file; None for one a core.

    Raises:
        UsageError: lengths that cannot be. DataError: a file that cannot be read or ends before its time; what was
        yielded before stands.
    """
    path = os.fspath(path)
    check_lengths(sampling, seconds, stride)
    size, _ = file_state(path)
    if size < 0:
        raise DataError(f"{path} does not exist; check the path")
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes); give a whole video file")
    if lost := missing_bytes(path):
        raise DataError(f"{path} is truncated: {lost} bytes are missing at its end; give a whole video file")
    window, frames = None, stream_frames(path, threads=threads or os.cpu_count() or 1)
    for window in slide(frames, sampling, img_size, seconds, stride, aligned):
        yield window
    if window is None:
        raise DataError(f"{path} has no frame that decodes; give a whole video file")


def check_lengths(sampling: Sampling, seconds: float | Length | None, stride: float | Length | None) -> None:
    """Raises UsageError for lengths of windows that cannot be."""
    if sampling.interval is not None and seconds is not None:
        raise UsageError(f"the model samples every {sampling.interval} frames, which sets its window: leave it out")
    for name, length in (("window", seconds), ("stride", stride)):
        amount, unit = Length.of(0.0 if length is None else length)
        if length is not None and not 0 < amount < float("inf"):
            raise UsageError(f"{name} is {amount} {unit}: give a length above 0")


def slide(
    frames: Iterable[ShownFrame],
    sampling: Sampling,
    img_size: int,
    seconds: float | Length | None,
    stride: float | Length | None,
    aligned: bool = False,
) -> Iterator[Window]:
    """The windows of frames in order of time, each as soon as its last frame is there; arguments as above."""
    held: deque[_Shown] = deque()  # the frame at each tick of one span
    count = span = step = covered = 0
    begin, rate = 0.0, 25.0
    for number, frame in enumerate(frames):
        if not span:
            begin, rate = frame.time, frame.rate
            span = _frames(sampling, rate, seconds)
            step = Length.of(stride).ticks(rate) if stride else max(span // 2, 1)
            plan = plan_clip(1, *frame.size, sampling=_centre(sampling), augmentation=None, img_size=img_size)
            taken = {index % step for index in _taken(sampling, span)} if aligned else set(range(step))
        late = (frame.time - begin) * rate - count  # ticks behind the next one
        if late <= -_JITTER:
            continue  # another frame has its tick
        newest = _Shown(number, frame.pixels.copy())
        before = held[-1] if held else newest
        stays = round(late) if late >= _JITTER else 0
        for shown in chain(repeat(before, stays), [newest]):
            if count < span or count % step in taken:
                shown.cut(plan, img_size)
            held.append(shown)
            count += 1
            if len(held) > span:
                held.popleft()
            if count >= span and (count - span) % step == 0:
                yield _window(held, count - len(held), count, sampling, begin, rate)
                covered = count
        if before is not newest:
            before.whole = _NOTHING
    first = covered - span + step if covered and aligned else count - len(held)
    if covered < count and first < count:
        held[-1].cut(plan, img_size)
        rest = [*held][first - count :]
        yield _window(rest + rest[-1:] * (len(held) - len(rest)), first, count, sampling, begin, rate)


def _frames(sampling: Sampling, rate: float, length: float | Length | None) -> int:
    """Ticks of a window."""
    if sampling.interval is not None:
        return sampling.num_frames * sampling.interval
    return max(Length.of(length or DEFAULT_SECONDS).ticks(rate), sampling.num_frames)


def _taken(sampling: Sampling, ticks: int) -> list[int]:
    return frame_indices(replace(sampling, clips=1), ticks)


def _centre(sampling: Sampling) -> Sampling:
    return Sampling(sampling.num_frames, short_side=sampling.short_side)


def _window(held: Sequence[_Shown], first: int, end: int, sampling: Sampling, begin: float, rate: float) -> Window:
    """The window that ``held`` is, from tick ``first`` on, of a video that had ``end`` ticks by then."""
    indices = _taken(sampling, len(held))
    squares = torch.from_numpy(np.stack([held[index].square for index in indices]))  # type: ignore[misc]
    end = min(first + len(held), end)
    times = begin + first / rate, begin + end / rate
    return Window(held[0].number, held[-1].number, *times, squares, first, end - first, np.array(indices), rate)
