"""Where the bytes of a clip are: in a file, in a folder of pictures, or in a stretch of a tar shard.

Everywhere a clip is named by one path. That of a shard's member says where in the tar it begins and how long it is,
``<shard>.tar@<offset>+<size>/<name>``, so that any member is read by one seek and no header.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from aim_fast.data.storage.cache import open_archive
from aim_fast.errors import DataError

__all__ = [
    "TarMember",
    "file_state",
    "held_bytes",
    "open_source",
    "read_member",
    "same_bytes",
    "tar_member",
    "video_source",
]

_READ_AT_ONCE = 2**20
_MEMBER = re.compile(r"(?P<archive>.*\.(?i:tar))@(?P<offset>\d+)\+(?P<size>\d+)/(?P<name>[^/]+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TarMember:
    """``size`` bytes of ``archive`` from byte ``offset`` on."""

    archive: str
    offset: int
    size: int
    name: str

    @property
    def path(self) -> str:
        """The one name by which the member is known."""
        return f"{self.archive}@{self.offset}+{self.size}/{os.path.basename(self.name)}"


def tar_member(path: str) -> TarMember | None:
    """The member that a path names, None for the path of a file or folder."""
    match = _MEMBER.fullmatch(path)
    return TarMember(match["archive"], int(match["offset"]), int(match["size"]), match["name"]) if match else None


def read_member(path: str) -> bytes:
    """A member's bytes; OSError where the shard is not there or ends before it, DataError where it is remote and
    cannot be fetched."""
    member = tar_member(path)
    if member is None:
        raise ValueError(f"{path} names no member of a tar")
    handle = open_archive(member.archive)
    try:
        data = os.pread(handle, member.size, member.offset)
        while 0 < len(data) < member.size:  # one read gives 2 GiB at most
            more = os.pread(handle, member.size - len(data), member.offset + len(data))
            if not more:
                break
            data += more
    finally:
        os.close(handle)
    if len(data) != member.size:
        raise OSError(f"the shard ends {member.size - len(data)} bytes before the end of the member")
    return data


def held_bytes(path: str) -> np.ndarray | None:
    """uint8 [n] of a shard's member, None for a path that a decoder opens by itself.

    Raises:
        DataError: the shard is not there or ends before the member.
    """
    if tar_member(path) is None:
        return None
    try:
        return np.frombuffer(read_member(path), np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def video_source(path: str) -> str | io.BytesIO:
    """What PyAV opens: the path itself, which it reads faster, or a member's bytes.

    The path is made absolute, or FFmpeg takes what comes before a colon for a protocol.
    """
    return io.BytesIO(read_member(path)) if tar_member(path) else os.path.abspath(path)


def open_source(path: str) -> BinaryIO:
    """The video's bytes as a file that can be sought in."""
    return io.BytesIO(read_member(path)) if tar_member(path) else open(path, "rb")


def same_bytes(path: str, other: str) -> bool:
    """Whether two files or members hold the same; one that cannot be read holds nothing that is known."""
    size = file_state(path)[0]
    if size <= 0 or size != file_state(other)[0] or os.path.isdir(path) or os.path.isdir(other):
        return False
    try:
        with open_source(path) as one, open_source(other) as two:
            while True:
                block = one.read(_READ_AT_ONCE)
                if block != two.read(_READ_AT_ONCE):
                    return False
                if not block:
                    return True
    except OSError:
        return False


def file_state(path: str) -> tuple[int, int]:
    """(bytes, modification time in ns), or (-1, 0) for what is not there. A member's time is its shard's."""
    member = tar_member(path)
    try:
        state = os.stat(member.archive if member else path)
    except OSError:
        return -1, 0
    return member.size if member else state.st_size, state.st_mtime_ns
