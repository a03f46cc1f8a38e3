"""A glance at clips: the rate of each, perceptual hashes of frames spread over it, and some frames to show.

Each file is looked at by a process of its own kind, with a time limit, as the index scans it. A hash is that of the
DCT ("pHash"): of the frame as 32 x 32 grey levels the 63 lowest frequencies but the mean, each a bit, set where it is
above their median. Frames of one colour have none.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from PIL import Image

from aim_fast.cores import default_workers
from aim_fast.data.index.rows import Row
from aim_fast.data.index.worker import Worker, WorkerLost, spread
from aim_fast.data.video.decode import each_frame
from aim_fast.data.video.stream import frame_rate, opened
from aim_fast.data.video.strip import strip
from aim_fast.errors import DataError

__all__ = ["Glance", "frame_hash", "glance", "glances", "serve"]

_A_SECOND = 3  # frames hashed a second, so that a copy cut anywhere has moments near those of its original
_MOST = 48  # of one clip
_SHOWN = 4
_SIDE, _LOW = 32, 8
_FLAT = 4.0  # standard deviation of grey levels below which a frame has one colour
_SECONDS = 120.0
_SERVE = "from aim_fast.data.index.glance import serve; serve()"
_DCT = np.cos(np.pi * (2 * np.arange(_SIDE) + 1) * np.arange(_LOW)[:, None] / (2 * _SIDE))
_BITS = np.uint64(1) << np.arange(_LOW * _LOW - 1, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Glance:
    """What was seen of a clip.

    Attributes: ``rate``, frames a second, 0 for folders of pictures; ``hashes``, uint64 [n], those of following frames
    that are alike once; ``sheet``, frames as a data address, "" where none was asked for; ``error``, None where it
    could be decoded.
    """

    rate: float
    hashes: np.ndarray
    sheet: str
    error: str | None = None


def frame_hash(frame: np.ndarray) -> int | None:
    """The hash of a uint8 frame [H, W, 3]; None for one of one colour."""
    image = Image.fromarray(frame).convert("L")
    grey = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64)
    if grey.std() < _FLAT:
        return None
    low = (_DCT @ grey @ _DCT.T).ravel()[1:]
    return int(_BITS[low > np.median(low)].sum())


def glance(path: str, frames: int, seek: bool, shown: bool) -> dict[str, Any]:
    """A glance at one healthy file of so many frames, as JSON can hold it."""
    rate = 0.0
    if not os.path.isdir(path):
        with opened(path) as (_, stream):
            rate = float(frame_rate(stream))
    count = min(max(round(frames / (rate or 25) * _A_SECOND), _SHOWN), _MOST, frames)
    numbers = np.unique(np.linspace(0, frames - 1, count).round().astype(int))
    kept = set(np.linspace(0, len(numbers) - 1, _SHOWN).round().astype(int).tolist()) if shown else set()
    hashes: dict[int, int] = {}
    pictures: dict[int, np.ndarray] = {}
    for place, frame in each_frame(path, numbers, rotate=True, seek=seek):
        if (found := frame_hash(frame)) is not None:
            hashes[place] = found
        if place in kept:
            pictures[place] = frame.copy()
    ordered = [hashes[place] for place in sorted(hashes)]
    changed = [found for i, found in enumerate(ordered) if i == 0 or (found ^ ordered[i - 1]).bit_count() > 1]
    return {"rate": rate, "hashes": changed, "sheet": strip([pictures[i] for i in sorted(pictures)]) if shown else ""}


def glances(
    rows: Sequence[Row], shown: set[int], workers: int = 0, done: Callable[[int, int], None] | None = None
) -> list[Glance]:
    """A glance at each of some healthy rows, those whose places are in ``shown`` with frames to show.

    ``done`` is called with (rows looked at, all of them).
    """
    results: list[Glance | None] = [None] * len(rows)
    finished = 0

    def look(worker: Worker, place: int) -> Glance:
        row = rows[place]
        try:
            found = worker.ask([row.path, row.frames, row.seekable, place in shown], _SECONDS)
        except TimeoutError:
            found = {"error": f"hangs the decoder (given up after {_SECONDS:.0f} s)"}
        except WorkerLost as lost:
            found = {"error": f"crashes the decoder (exit status {lost.status})"}
        hashes = np.array(found.get("hashes", []), np.uint64)
        return Glance(found.get("rate", 0.0), hashes, found.get("sheet", ""), found.get("error"))

    def ready(place: int, found: Glance) -> None:
        nonlocal finished
        results[place] = found
        finished += 1
        if done is not None:
            done(finished, len(rows))

    spread(len(rows), workers or default_workers(), lambda: Worker(_SERVE), look, ready)
    return [found for found in results if found is not None]


def serve() -> None:
    """Answer on standard output what is asked on standard input until that ends."""
    av.logging.set_level(av.logging.PANIC)
    for line in sys.stdin:
        try:
            answer = glance(*json.loads(line))
        except (DataError, av.FFmpegError, OSError, ValueError, IndexError) as error:
            answer = {"error": " ".join(str(error).split())}
        print(json.dumps(answer), flush=True)
