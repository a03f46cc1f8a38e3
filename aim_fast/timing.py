"""Fair timing: candidates take turns, so that whatever else the machine does falls on all of them alike.

A ratio is the median of the ratios of each round, which a change of load between rounds cannot move.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

_CACHE = 256 * 2**20  # bytes, more than any GPU's level-2 cache
_LAUNCHING = 4_000_000  # cycles, about two milliseconds


class Timing(NamedTuple):
    """Seconds a call, one figure a round."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / 2 / self.median
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


def take_turns(
    candidates: Mapping[str, Callable[[], object]], rounds: int, device: str, warm: int = 1, ahead: bool = False
) -> dict[str, Timing]:
    """Runs every candidate ``warm`` times, then once a round in turn. On a GPU a call is timed with its kernels.

    ``ahead``: on a GPU, the kernels alone, with a cold cache: the device is kept busy while a call is launched, so that
    what Python takes to launch a few short kernels is not counted as theirs.
    """
    for _ in range(warm):
        for run in candidates.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            seconds[name].append(_seconds(run, device, ahead))
    return {name: Timing(values) for name, values in seconds.items()}


def ratio(slower: Timing, faster: Timing) -> float:
    """How many times longer ``slower`` takes: median over the rounds."""
    return statistics.median(a / b for a, b in zip(slower.seconds, faster.seconds, strict=True))


def _seconds(run: Callable[[], object], device: str, ahead: bool) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        if ahead:
            torch.empty(_CACHE, dtype=torch.uint8, device=device).zero_()
            torch.cuda._sleep(_LAUNCHING)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
