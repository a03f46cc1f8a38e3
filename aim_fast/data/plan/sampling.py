"""Which frames of a video make a clip.

Uniform (segment) sampling cuts n frames into T segments: with g = (n-1)/T, segment i runs from s = round(g·i) to
e = round(g·(i+1)), halves to even and both ends inclusive. Training draws one frame of each segment; testing takes
(s+e)//2. Dense sampling takes T frames at a fixed interval r, a span of L = T·r: training draws one of the n-L+1
starts; testing, with a = (n-L+1)/clips, starts clip i at int(a·i + a/2). A video shorter than the span is looped:
start 0, indices modulo n. Published with AIM (Yang et al., ICLR 2023). Others test from the first start to the last,
clip i of V at round(i·(n-L)/(V-1)) (``ends``), or have T segments of n/T frames each (``equal``; Wang et al., TSN,
ECCV 2016): training draws one frame of each, testing takes the middle.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aim_fast.errors import UsageError

__all__ = ["Sampling", "frame_indices"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How clips are cut from a video: frames in time, and the views that evaluation takes.

    Attributes:
        num_frames: T, frames a clip.
        interval: frames between neighbours (dense sampling), or None for uniform sampling over the whole video.
        clips: evaluation views along time; training always takes one.
        crops: evaluation views along the long side: 1 (centre) or 3 (left, right, middle, or top, bottom, middle).
        short_side: pixels that the short side has before an evaluation crop of the model's image size, or None for
            the image size itself (the published test view; validation crops 224 from 256).
        ends: whether the dense clips of evaluation are spread from the first possible start to the last, instead of
            over the middles of equal parts.
        equal: uniform sampling with T segments of n/T frames that share no frame, as TSN, X-CLIP and ActionCLIP have
            them, instead of AIM's.
        random: draw the frames of each evaluation clip as training does, by (seed, view, index), instead of dividing
            the video evenly among them.
    """

    num_frames: int
    interval: int | None = None
    clips: int = 1
    crops: int = 1
    short_side: int | None = None
    ends: bool = False
    equal: bool = False
    random: bool = False

    def __post_init__(self) -> None:
        for name in ("num_frames", "clips"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: give a whole number of at least 1")
        if self.interval is not None and self.interval < 1:
            raise UsageError(f"frame interval is {self.interval}: give at least 1, or none for uniform sampling")
        if self.crops not in (1, 3):
            raise UsageError(f"crops is {self.crops}: views have 1 (centre) or 3 crops")

    @property
    def views(self) -> int:
        """Views that evaluation scores for each video: clips × crops. View v is clip v // crops, crop v % crops."""
        return self.clips * self.crops

    def validation(self, img_size: int) -> Sampling:
        """The published validation view: one centre clip, short side 256 for a crop of 224, in proportion else."""
        return replace(self, clips=1, crops=1, short_side=round(img_size * 256 / 224), random=False)


def frame_indices(
    sampling: Sampling, num_frames: int, *, clip: int = 0, draws: Sequence[float] | None = None
) -> list[int]:
    """T frame indices in [0, num_frames), in order of time (dense clips of short videos wrap around).

    Args:
        sampling: T, interval, and the number of clips that evaluation divides the video into.
        num_frames: frames that the video has, n.
        clip: which of the evaluation clips; the published uniform rule has one, further ones divide each segment.
        draws: uniform numbers in [0, 1) for training: T of them (uniform) or one (dense); None for evaluation.
    """
    if sampling.interval is None:
        return (_equal if sampling.equal else _uniform)(num_frames, sampling.num_frames, clip, sampling.clips, draws)
    return _dense(num_frames, sampling, sampling.interval, clip, draws)


def _uniform(n: int, length: int, clip: int, clips: int, draws: Sequence[float] | None) -> list[int]:
    gap = (n - 1) / length
    edges = [round(gap * i) for i in range(length + 1)]  # Python rounds halves to even, as published
    if draws is None:
        return [s + (e - s) * (2 * clip + 1) // (2 * clips) for s, e in itertools.pairwise(edges)]
    return [s + int(u * (e - s + 1)) for s, e, u in zip(edges, edges[1:], draws)]


def _equal(n: int, length: int, clip: int, clips: int, draws: Sequence[float] | None) -> list[int]:
    places = [(2 * clip + 1) / (2 * clips)] * length if draws is None else draws
    return [int((i + place) * n / length) for i, place in zip(range(length), places)]


def _dense(n: int, sampling: Sampling, interval: int, clip: int, draws: Sequence[float] | None) -> list[int]:
    length, clips = sampling.num_frames, sampling.clips
    starts = n - length * interval + 1
    if starts < 1:
        start = 0
    elif draws is None and sampling.ends and clips > 1:
        start = round(clip * (starts - 1) / (clips - 1))
    elif draws is None:
        start = math.floor(starts / clips * clip + starts / clips / 2)
    else:
        start = int(draws[0] * starts)
    return [(start + i * interval) % n for i in range(length)]
