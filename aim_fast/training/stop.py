"""Stopping a run before its end: what a cluster's SIGTERM asks for, and a limit on its time.

The first SIGTERM lets the step under way finish; the run then saves its last checkpoint and ends with status 0, to go
on with ``--resume``. A second one ends the process at once, as without a handler; the last checkpoint stays whole.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from aim_fast.training.arriving import Arriving
from aim_fast.training.devices import Place


class StopRequest:
    """Catches SIGTERM while it is entered, in the main thread; elsewhere nothing is caught and nothing is asked.

    ``limit`` is a number of seconds, from the object's making on, after which it asks by itself.
    """

    def __init__(self, place: Place, limit: float = math.inf) -> None:
        self.place = place
        self.end = time.monotonic() + limit
        self.terminated = False
        self._posted: tuple[Arriving, Any] | None = None
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._ask)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.terminated = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.end

    @property
    def asked(self) -> bool:
        """Whether this process was asked."""
        return self.terminated or self.late

    @property
    def cause(self) -> str:
        """What asked, for a reader."""
        return "the time limit" if self.late and not self.terminated else "SIGTERM"

    def agreed(self) -> bool:
        """Whether every process stops here; to be called by all of them after each step.

        Several processes agree through a sum that is read one step later, so that a GPU is never waited for.
        """
        if self.place.world == 1:
            return self.asked
        before = self._posted
        flag = torch.full((), int(self.asked), device=self.place.device)
        sum_of_all = dist.all_reduce(flag, async_op=True)
        if flag.is_cuda:
            sum_of_all.wait()  # the stream does, and not the host
        self._posted = Arriving(flag), sum_of_all
        if before is None:
            return False
        before[1].wait()
        return bool(before[0].item())

    @property
    def at_once(self) -> bool:
        """Whether this process, working alone, may stop in the middle of a validation."""
        return self.asked and self.place.world == 1


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """A block that SIGTERM leaves as Ctrl-C does: by a KeyboardInterrupt, which names it. For the main thread."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
