"""One process trains into a run's folder at a time: a lock that the system releases when its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from aim_fast.errors import CheckpointError

LOCK = ".lock"


class RunLock:
    """Held from construction until `release`. Raises CheckpointError while another process holds it.

    A file system without locks is taken as it is: there the user must see to it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        _lock(self._file, fcntl.LOCK_EX, folder)
        os.truncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._file)


def check_unlocked(folder: Path) -> None:
    """Raises CheckpointError when another process trains into the folder now; several may look at once."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return
    _lock(file, fcntl.LOCK_SH, folder)
    os.close(file)


def _lock(file: int, kind: int, folder: Path) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(file, 32).decode(errors="replace").strip()
        os.close(file)
        raise CheckpointError(
            f"{folder}: process {holder} is training into it; wait for it, or give another --output"
        ) from None
    except OSError:
        pass  # no locks on this file system
