"""Running an iterator ahead of its consumer, in a thread of its own."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Generator, Iterator
from typing import Any, Generic, TypeVar

__all__ = ["Prefetcher"]

Item = TypeVar("Item")
_END = object()


class Prefetcher(Generic[Item]):
    """Keeps up to ``depth`` finished items of one iterator ready; starting another ends the one before."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._run: _Run | None = None
        self._at_end: weakref.finalize | None = None

    def start(self, items: Generator[Item, None, None]) -> Iterator[Item]:
        """Begin drawing ``items`` now; they, or the exception that ended them, come out of the iterator returned."""
        self.stop()
        self._run = run = _Run(items, self.depth)
        # Not left to the interpreter's end, when native threads would outlive the libraries that they run in.
        self._at_end = weakref.finalize(self, run.stop)
        return self._given(run)

    def stop(self) -> None:
        """End the current iterator, closing it in its own thread."""
        if self._run is not None:
            self._run.stop()
            self._run = None
        if self._at_end is not None:
            self._at_end.detach()

    def _given(self, run: _Run) -> Iterator[Item]:
        try:
            while not run.stopped.is_set():
                try:
                    item = run.ready.get(timeout=0.2)
                except queue.Empty:
                    continue
                if item is _END:
                    return
                if isinstance(item, _Raised):
                    raise item.error
                yield item
        finally:
            run.stop()


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Run:
    def __init__(self, items: Generator[Any, None, None], depth: int) -> None:
        self.ready: queue.Queue[Any] = queue.Queue(depth)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._draw, args=(items,), name="prefetch", daemon=True)
        self.thread.start()

    def _draw(self, items: Generator[Any, None, None]) -> None:
        last: Any = _END
        try:
            for item in items:
                if not self._put(item):
                    break
        except BaseException as error:
            last = _Raised(error)
        finally:
            items.close()
        self._put(last)

    def _put(self, item: Any) -> bool:
        while not self.stopped.is_set():
            try:
                self.ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def stop(self) -> None:
        self.stopped.set()
        if self.thread is not threading.current_thread():
            self.thread.join()
        with contextlib.suppress(queue.Empty):  # what was ready is let go
            while True:
                self.ready.get_nowait()
