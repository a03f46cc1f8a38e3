"""Annotation files read with errors that say which file, which line, and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aim_fast.errors import DataError

__all__ = ["VIDEO_EXTENSIONS", "read_json", "read_lines"]

VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in ("mp4", "webm", "avi", "mkv", "mov", "m4v", "mpg", "mpeg", "wmv", "flv", "3gp", "ts", "ogv", "gif")
)


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
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; check the data root") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}); is it the annotation file?") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
