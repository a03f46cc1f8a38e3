"""Whole tars of object storage on this disk, together within a bound: the one that was used longest ago goes first.

A remote shard is a small file in a mirror folder (see ``mirror``) that says where the tar is; opened here it is the
tar. That is written under another name and takes its own when all its bytes are there. Locks keep processes from
fetching one twice and from counting the room twice; one that was opened can be read to its end though it is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from aim_fast.data.storage.address import shown
from aim_fast.errors import DataError
from aim_fast.files import check_room, claimed, sync, write_whole

__all__ = ["RemoteShard", "limit_tars", "open_archive", "storage_folder", "tar_folder"]

_MARK = b"aim-fast remote shard\n"
_LIMIT = ".limit"
DEFAULT_LIMIT = 64 * 2**30  # bytes
_LOOK_SECONDS = 0.2
_fetching: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)  # the threads of this process


@dataclass(frozen=True)
class RemoteShard:
    """A tar at ``address`` of ``size`` bytes, kept in ``folder``; ``version`` changes with what it holds."""

    address: str
    size: int
    version: str
    folder: str

    def to_bytes(self) -> bytes:
        """What stands in its place in a mirror, of one length whatever signature the address has."""
        return (_MARK + json.dumps(asdict(self)).encode()).ljust(4096)

    @property
    def file(self) -> Path:
        """Where its tar is kept."""
        key = hashlib.sha256(f"{shown(self.address)}\0{self.size}\0{self.version}".encode()).hexdigest()[:24]
        return Path(self.folder) / f"{key}.tar"


def storage_folder() -> Path:
    """Where mirrors are kept: XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aim-fast" / "storage"


def tar_folder() -> Path:
    """Where the tars of all mirrors are kept."""
    return storage_folder() / "tars"


def limit_tars(gib: float) -> None:
    """From now on tars take so much at most, in all processes."""
    folder = tar_folder()
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _LIMIT, str(round(gib * 2**30)))


def _limit(folder: Path) -> int:
    try:
        return int((folder / _LIMIT).read_text())
    except (OSError, ValueError):
        return DEFAULT_LIMIT


def open_archive(path: str | os.PathLike[str]) -> int:
    """A file descriptor of a tar, the path's own or the remote one that it stands for.

    Raises OSError where it is not there or cannot be read, DataError where it cannot be fetched.
    """
    handle = os.open(path, os.O_RDONLY)
    if os.pread(handle, len(_MARK), 0) != _MARK:
        return handle
    with os.fdopen(handle, "rb") as file:
        shard = RemoteShard(**json.loads(file.read()[len(_MARK) :]))
    while True:
        try:
            handle = os.open(shard.file, os.O_RDONLY)
        except FileNotFoundError:
            _fetch(shard)
            continue
        if os.fstat(handle).st_size == shard.size:
            os.utime(handle, ns=(time.time_ns(),) * 2)  # used now, finer than the system's own clock of files
            return handle
        os.close(handle)
        shard.file.unlink(missing_ok=True)  # of a disk that lost bytes


def _fetch(shard: RemoteShard) -> None:
    from aim_fast.data.storage.transfer import fetch

    file, limit = shard.file, _limit(Path(shard.folder))
    if shard.size > limit:
        raise DataError(
            f"{shown(shard.address)}: is {shard.size / 2**30:.2g} GiB and the cache {limit / 2**30:.2g} GiB; give a "
            "larger --shard-cache-gib"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with _fetching[file], claimed(file.with_suffix(".lock"), wait=True):
        if file.exists():
            return
        unfinished = _reserve(shard, limit)
        try:
            check_room(file.parent, shard.size, "a shard needs", "set XDG_CACHE_HOME to a larger disk")
            fetch(shard.address, shard.size, unfinished)
            sync(unfinished)
            os.replace(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)


def _reserve(shard: RemoteShard, limit: int) -> Path:
    """The name to fetch under, once there is room: its size is in it, so that it counts before it is there."""
    file = shard.file
    unfinished = file.with_name(f"{file.stem}.{shard.size}.part")
    while True:
        with claimed(file.parent / ".room.lock", wait=True):
            _clear_left(file.parent, file)
            kept = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in file.parent.glob("*.tar"))
            coming = sum(int(path.name.split(".")[-2]) for path in file.parent.glob("*.part"))
            total = shard.size + coming + sum(size for _, size, _ in kept)
            for _, size, path in kept:
                if total <= limit:
                    break
                path.unlink(missing_ok=True)
                total -= size
            if total <= limit:
                unfinished.touch()
                return unfinished
        time.sleep(_LOOK_SECONDS)  # others fetch, and can be removed when they are there


def _clear_left(folder: Path, mine: Path) -> None:
    """Removes what processes that were killed had begun to fetch."""
    for path in folder.glob("*.part"):
        of = folder / f"{path.name.split('.')[0]}.lock"
        if of == mine.with_suffix(".lock"):
            path.unlink(missing_ok=True)
            continue
        with claimed(of) as left:
            if left:
                path.unlink(missing_ok=True)
