"""What a training run has spent, read from its metrics: hours of training, clips a second, and memory.

A line of training says how fast its epoch has been so far. The hours of an epoch are its clips at the speed of its last
line, so that what a run lost to being stopped and begun again is not counted, nor its start and its validations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aim_fast.training.metrics import read_metrics


@dataclass(frozen=True)
class Spending:
    """``hours`` of training steps, ``clips_per_s`` over them, and ``peak_memory`` bytes at the highest point."""

    hours: float | None
    clips_per_s: float | None
    peak_memory: int | None


def spending_of(folder: Path, clips: int) -> Spending:
    """Of the run in ``folder``, whose epochs have ``clips`` clips; None of what its metrics do not say."""
    rows = read_metrics(folder)
    last = {row["epoch"]: row["clips_per_s"] for row in rows if row["kind"] == "train"}
    seconds = sum(clips / speed for speed in last.values() if speed)
    peaks = [row["peak_memory"] for row in rows if "peak_memory" in row]
    speed = len(last) * clips / seconds if seconds else None
    return Spending(seconds / 3600 if seconds else None, speed, max(peaks, default=None))


def steady_speed(rows: Sequence[Mapping[str, Any]], clips_per_step: int) -> float | None:
    """Clips a second between the first and the last line of an epoch's training; None where there is one line alone."""
    lines = [row for row in rows if row["kind"] == "train" and row["clips_per_s"]]
    clips = [row["step"] * clips_per_step for row in lines]
    times = [count / row["clips_per_s"] for count, row in zip(clips, lines)]
    if len(lines) < 2 or times[-1] <= times[0]:
        return None
    return (clips[-1] - clips[0]) / (times[-1] - times[0])
