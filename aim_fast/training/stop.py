"""Stopping a run from outside: what a cluster's SIGTERM asks for.

The first SIGTERM lets the step under way finish; the run then saves its last checkpoint and ends with status 0, to go
on with ``--resume``. A second one ends the process at once, as without a handler; the last checkpoint stays whole.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from aim_fast.training.devices import Place


class StopRequest:
    """Catches SIGTERM while it is entered, in the main thread; elsewhere nothing is caught and nothing is asked."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.asked = False
        self._posted: tuple[torch.Tensor, Any] | None = None
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
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def agreed(self) -> bool:
        """Whether every process stops here; to be called by all of them after each step.

        Several processes agree through a sum that is read one step later, so that a GPU is never waited for.
        """
        if self.place.world == 1:
            return self.asked
        before = self._posted
        flag = torch.tensor(int(self.asked), device=self.place.device)
        self._posted = (flag, dist.all_reduce(flag, async_op=True))
        if before is None:
            return False
        before[1].wait()
        return bool(before[0].item())

    @property
    def at_once(self) -> bool:
        """Whether this process, working alone, may stop in the middle of a validation."""
        return self.asked and self.place.world == 1
