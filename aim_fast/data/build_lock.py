"""One process at a time builds what several share: an index, a frame cache, shards, a transcoded folder.

The lock is the system's, on a file in the folder, and goes with its holder however that ends. Whoever waited finds the
work done. A file system without locks, or one that cannot be written to, is taken as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["one_builder"]


@contextlib.contextmanager
def one_builder(places: Sequence[Path], what: str) -> Iterator[None]:
    """A block that one process at a time is in, of those that give the same ``places``.

    Args:
        places: lock files, of which the first that can be written is taken; their folders are made.
        what: is built, for the line that a process says while it waits for another.
    """
    handle = next((handle for place in places if (handle := _opened(place)) is not None), None)
    if handle is None:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            _wait(handle, what)
            os.truncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _opened(place: Path) -> int | None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return None


def _wait(handle: int, what: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
        print(f"waiting for process {holder or 'of another run'}, which makes {what}", file=sys.stderr, flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
