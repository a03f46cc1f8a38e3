"""Videos named one by one, by folders and by lists, without labels: what is asked about and not trained on.

A folder gives all videos below it, by path. A list is a text file (``.txt``, ``.list``) with a path a line, or the
first column of a ``.csv``; paths are absolute, or relative to the list.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from aim_fast.data.formats.annotation import read_lines
from aim_fast.data.formats.extensions import file_head, file_kind, hidden
from aim_fast.data.formats.listing import UNLABELLED, Clip, Listing
from aim_fast.errors import DataError

__all__ = ["named_videos"]

_LISTS = (".txt", ".list", ".csv")


def named_videos(sources: Sequence[str]) -> Listing:
    """The videos that ``sources`` name, each once, in the order in which they are named; paths are absolute.

    Raises DataError for a source that is not there or names no video. A video that a list names need not be there.
    """
    paths: dict[str, None] = {}
    for source in sources:
        found = list(_videos(Path(source).expanduser()))
        if not found:
            raise DataError(f"{source}: holds no video; give videos, folders of them, or a list with a path a line")
        paths |= dict.fromkeys(os.path.abspath(path) for path in found)
    return Listing([], [Clip(path, UNLABELLED, Path(path).stem) for path in paths])


def _videos(source: Path) -> Iterator[str | Path]:
    if source.is_dir():
        seen = set()
        for folder, inside, files in os.walk(source, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:  # a link to a folder above, or a second one
                inside.clear()
                continue
            seen.add(real)
            inside[:] = sorted(name for name in inside if not hidden(name))
            for name in sorted(files):
                path = os.path.join(folder, name)
                if not hidden(name) and file_kind(name, lambda: file_head(path)) == "video":  # noqa: B023
                    yield path
    elif not source.exists():
        raise DataError(f"{source} does not exist; give a video, a folder of them, or a list with a path a line")
    elif source.suffix.lower() not in _LISTS:
        yield source
    else:
        lines = read_lines(source)
        if source.suffix.lower() == ".csv":
            rows = [row[0] for row in csv.reader(lines) if row]
            lines = rows[1:] if rows and "." not in rows[0] else rows  # a heading names no file
        yield from (source.parent / line.strip() for line in lines if line.strip() and not line.startswith("#"))
