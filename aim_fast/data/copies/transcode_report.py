"""What transcoding a data set has brought: sizes, and the time that the same frames take from old and new files."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aim_fast.data.index.rows import Row
from aim_fast.data.video.decode import decode_frames

__all__ = ["TranscodeReport"]

_FILES, _FRAMES, _INTERVAL = 16, 8, 8  # of a measurement


@dataclass
class TranscodeReport:
    """What came of it. Speeds are of one thread and ``_FRAMES`` frames at a time, both sides on the same frames.

    Attributes:
        files, frames: encoded, now or by an earlier run of the same command.
        bytes_before, bytes_after: of these files.
        clips_per_s_before, clips_per_s_after: medians over a sample.
        speedup: median of the sample's ratios.
        failed: path -> reason, of usable files that could not be encoded.
        skipped: path -> reason, of files that were of no use before.
        notes: lines about what of the data set is no clip.
    """

    dataset: str
    encoding: dict[str, Any]
    files: int = 0
    frames: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    clips_per_s_before: float = 0.0
    clips_per_s_after: float = 0.0
    speedup: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def text(self) -> list[str]:
        """Lines to print."""
        share = self.bytes_after / max(self.bytes_before, 1)
        return [
            f"{self.files} videos, {self.frames} frames",
            f"size: {self.bytes_before / 1e6:.1f} MB before, {self.bytes_after / 1e6:.1f} MB after ({share:.2f} of it)",
            f"decoding {_FRAMES} frames, one thread: {self.clips_per_s_before:.1f} clips/s before, "
            f"{self.clips_per_s_after:.1f} after (a file {self.speedup:.2f} times)",
        ]

    def measure(self, videos: Sequence[tuple[Row, str]]) -> None:
        """Time a sample of (old video, new path): a stretch from somewhere in each, as in training."""
        draw = np.random.default_rng(0)
        times = []
        for number in draw.permutation(len(videos))[:_FILES]:
            old, new = videos[number]
            length = old.frames
            count = min(_FRAMES, length)
            interval = max(1, min(_INTERVAL, length // count))
            frames = int(draw.integers(0, length - interval * (count - 1))) + interval * np.arange(count)
            seconds = []
            for path, seek in ((old.path, old.seekable), (new, True)):
                decode_frames(path, frames[:1], seek=seek)  # into the page cache
                start = time.perf_counter()
                decode_frames(path, frames, seek=seek)
                seconds.append(time.perf_counter() - start)
            times.append(seconds)
        if times:
            self.clips_per_s_before = round(1 / statistics.median(before for before, _ in times), 2)
            self.clips_per_s_after = round(1 / statistics.median(after for _, after in times), 2)
            self.speedup = round(statistics.median(before / after for before, after in times), 3)
