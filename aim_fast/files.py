"""Files and folders written whole, the room for them, and the locks of those who write them.

What is written goes under a temporary name beside its place, is synced, and takes the place in one rename: a reader, a
full disk or a kill at any moment sees the old or the new one whole. Its mode is what the umask says. Temporary names
are ``.NAME.TOKEN.part``, so that no reader of a data set takes them for data, and :func:`clear_unfinished` finds what a
kill left.

Locks are the system's, on a file, and go with their holder however that ends. A file system without locks is taken as
it is: there the user must see to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor

from aim_fast.errors import CheckpointError, DataError

__all__ = [
    *("check_room", "check_unlocked", "claimed", "clear_unfinished", "free_bytes", "lock_run", "one_builder"),
    *("replacing", "sync", "write_whole"),
]

_UNFINISHED = ".part"
_RUN_LOCK = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_LOOK_SECONDS = 0.5


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name for the block to make a file, a folder or a link by, which then takes the place of ``path``, synced.

    A block that raises leaves ``path`` as it was and nothing beside it. What is no file, such as ``/dev/null``, is
    written to as it is. The rename itself is on disk once the folder is, see :func:`sync`.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    temporary = _beside(path)
    try:
        yield temporary
        if not temporary.is_symlink():
            for made in (*temporary.rglob("*"), temporary):
                if not made.is_symlink():
                    sync(made)
        if path.is_dir() and not path.is_symlink() and temporary.is_dir():
            _replace_folder(temporary, path)
        else:
            os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write one file, text as UTF-8, by :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Return once a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left in ``folder``, for one who alone writes there."""
    for path in folder.glob(f"*{_UNFINISHED}"):
        _remove(path)


def free_bytes(place: Path) -> int:
    """On the disk of ``place``, which need not be there yet."""
    place = place.absolute()
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free


def check_room(folder: Path, needed: float, what: str, advice: str) -> None:
    """Raises DataError where ``needed`` bytes do not fit: "FOLDER: the shards need 2.0 GiB and 1.0 GiB are free; …".

    Args:
        what: a clause that the amount ends, such as "the shards need".
        advice: what to do, such as "take a larger disk".
    """
    free = free_bytes(folder)
    if needed > free:
        raise DataError(f"{folder}: {what} {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; {advice}")


@contextlib.contextmanager
def one_builder(places: Sequence[Path], what: str) -> Iterator[None]:
    """A block that one process at a time is in, of those that give the same ``places``: who waited finds it built.

    Args:
        places: lock files, of which the first that can be written is taken; their folders are made.
        what: is built, for the line that a process says while it waits for another.
    """
    lock = None
    for place in places:
        try:
            lock = _waited_for(place, what)
            break
        except OSError:
            continue
    try:
        yield
    finally:
        if lock:
            lock.release()


@contextlib.contextmanager
def claimed(place: Path, wait: bool = False) -> Iterator[bool]:
    """A block that is told whether it alone has ``place``, a lock file, now or after a ``wait`` for who has it."""
    try:
        lock = _locked(place, -1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if lock:
            lock.release()


def lock_run(folder: Path) -> FileLock | None:
    """The lock of a run's folder, held until its release; None on a file system without locks.

    Raises CheckpointError at once while another process trains into the folder, OSError where it cannot be written.
    """
    try:
        return _locked(folder / _RUN_LOCK, 0)
    except Timeout:
        raise _in_use(folder) from None


def check_unlocked(folder: Path) -> None:
    """Raises CheckpointError where a process trains into ``folder`` now. Makes nothing; several may look at once."""
    with contextlib.suppress(OSError), open(folder / _RUN_LOCK, "rb") as file:
        end = time.monotonic() + _LOOK_SECONDS
        while not lock_descriptor(file.fileno(), blocking=False):
            if time.monotonic() > end:  # one that looks too holds it for an instant
                raise _in_use(folder)
            time.sleep(0.01)


def _in_use(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder}: {_holder(folder / _RUN_LOCK)} is training into it; wait for it, or give another --output"
    )


def _waited_for(place: Path, what: str) -> FileLock | None:
    try:
        return _locked(place, 0)
    except Timeout:
        print(f"waiting for {_holder(place)}, which makes {what}", file=sys.stderr, flush=True)
        return _locked(place, -1)


def _locked(place: Path, timeout: float) -> FileLock | None:
    """The lock, held; None on a file system without. Raises Timeout after so many seconds, waits for ever below 0."""
    lock = FileLock(place, fallback_to_soft=False, thread_local=False, on_acquired=_sign)
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return lock


def _sign(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name too
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def _holder(place: Path) -> str:
    with contextlib.suppress(OSError):
        if number := place.read_text(errors="replace")[:32].strip():
            return f"process {number}"
    return "another process"


def _beside(path: Path) -> Path:
    # at random, as two machines may write one place; cut, as a name of 255 bytes is as long as names can be
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}{_UNFINISHED}")


def _replace_folder(temporary: Path, path: Path) -> None:
    old = _beside(path)
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(old, path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    """What can be: who is about to raise has more to say than that a rest stays."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
