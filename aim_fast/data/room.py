"""A bound on what threads hold at once, in bytes: who finds too little room waits for others to be done."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["Room"]


class Room:
    """``size`` bytes to share; what is larger than all of it takes it alone."""

    def __init__(self, size: int) -> None:
        self.size = self.free = size
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """A block in which this many bytes are held."""
        size = min(size, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self.free >= size)
            self.free -= size
        try:
            yield
        finally:
            with self._changed:
                self.free += size
                self._changed.notify_all()
