"""Annotation files read with errors that say which file, which line, and what to do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from aim_fast.errors import DataError

__all__ = ["VIDEO_EXTENSIONS", "files_read", "find_annotation", "read_json", "read_lines"]

VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in ("mp4", "webm", "avi", "mkv", "mov", "m4v", "mpg", "mpeg", "wmv", "flv", "3gp", "ts", "ogv", "gif")
)

_READ: ContextVar[list[Path] | None] = ContextVar("annotation files read", default=None)


def find_annotation(root: Path, names: Sequence[str], folders: Sequence[str] = ()) -> Path | None:
    """The first file of these names at the root, in its ``annotations`` or ``labels``, or in other ``folders``."""
    places = (root / folder for folder in (".", *folders, "annotations", "labels"))
    return next((place / name for place in places for name in names if (place / name).is_file()), None)


@contextlib.contextmanager
def files_read() -> Iterator[list[Path]]:
    """Collects the annotation files that are read within the block, in the order of reading."""
    files: list[Path] = []
    token = _READ.set(files)
    try:
        yield files
    finally:
        _READ.reset(token)


def read_json(file: Path) -> Any:
    """The parsed file; DataError with line and column where it is not valid JSON."""
    try:
        return json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file} is not valid JSON at line {error.lineno} column {error.colno} ({error.msg}); "
            "download or write it again"
        ) from None


def read_lines(file: Path) -> list[str]:
    """The file's lines without line ends; blank lines stay, so that positions are line numbers."""
    return _text(file).splitlines()


def _text(file: Path) -> str:
    files = _READ.get()
    if files is not None and file not in files:
        files.append(file)
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; check the data root") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}); is it the annotation file?") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
