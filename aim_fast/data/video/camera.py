"""Cameras by their number and videos by their address, opened by PyAV.

An address is ``scheme://…`` of one of :data:`SCHEMES`. Where one is printed, user, password and query are left out.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import av
from av.container import InputContainer

from aim_fast.errors import DataError, UsageError

__all__ = ["SCHEMES", "is_live", "open_live", "shown"]

SCHEMES = ("rtsp", "rtsps", "http", "https", "tcp", "udp", "rtp", "rtmp", "rtmps", "srt")
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,3}")


def is_live(source: object) -> bool:
    """Whether a source is a camera's number or an address; a file of that name is a file."""
    if isinstance(source, int):
        return True
    if not isinstance(source, str) or os.path.exists(source):
        return False
    return bool(_NUMBER.fullmatch(source) or _ADDRESS.match(source))


def shown(source: int | str) -> str:
    """What a source is called in print: ``camera 0``, ``rtsp://***@host/stream``, ``http://host/clip.mp4?…``."""
    address = _ADDRESS.match(source) if isinstance(source, str) else None
    if address is None:
        return f"camera {int(source)}"
    user, at, rest = address["rest"].rpartition("@")  # a password may hold any letter
    place, query = re.match(r"([^?#]*)(.?)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{address['scheme']}://{'***' if user else ''}{at}{place}{query and query + '…'}"


def open_live(source: int | str, seconds: float) -> InputContainer:
    """The opened container of a camera or an address, which gives up after ``seconds`` without data.

    Raises:
        UsageError: an address of another scheme. DataError: no such camera. av.FFmpegError, OSError, ValueError: it
        cannot be opened.
    """
    address = _ADDRESS.match(source) if isinstance(source, str) else None
    if address is None:
        name, kind, options = _camera(int(source))
        return av.open(name, format=kind, options=options)
    scheme = address["scheme"].lower()
    if scheme not in SCHEMES:
        raise UsageError(f"{shown(source)}: {scheme} is none of the addresses that are read: {', '.join(SCHEMES)}")
    options = {"rtsp_flags": "prefer_tcp"} if scheme.startswith("rtsp") else {}
    return av.open(str(source), timeout=(seconds, seconds), options=options, metadata_errors="replace")


def _camera(number: int) -> tuple[str, str, dict[str, str]]:
    """Name, format and options by which FFmpeg knows a camera on this system."""
    if sys.platform == "darwin":
        return f"{number}:none", "avfoundation", {"framerate": "30"}
    if sys.platform == "win32":  # known by name alone
        names = [device.description for device in av.enumerate_input_devices("dshow")]
        if 0 <= number < len(names):
            return f"video={names[number]}", "dshow", {}
        raise DataError(f"camera {number} is not there; cameras here: {', '.join(names) or 'none'}")
    path = Path(f"/dev/video{number}")
    if not path.exists():
        found = ", ".join(sorted(device.name.removeprefix("video") for device in path.parent.glob("video[0-9]*")))
        raise DataError(f"camera {number} is not there ({path}); cameras here: {found or 'none'}")
    return str(path), "v4l2", {}
