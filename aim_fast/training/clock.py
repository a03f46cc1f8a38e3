"""How fast an epoch goes, and how much of its time is spent waiting for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Speed of an epoch so far, and the share of its time that was spent waiting for data."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.waited = 0.0
        self.clips = 0

    def count(self, clips: int) -> None:
        self.clips += clips

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @property
    def waiting(self) -> float:
        return self.waited / max(time.perf_counter() - self.start, 1e-9)

    @property
    def clips_per_s(self) -> float:
        return self.clips / max(time.perf_counter() - self.start, 1e-9)
