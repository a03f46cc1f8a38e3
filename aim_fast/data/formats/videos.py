"""The videos of a data set, found by their names whatever their folder and extension."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from aim_fast.data.formats.annotation import composed
from aim_fast.data.formats.extensions import VIDEO_EXTENSIONS, file_head, file_kind, hidden

__all__ = ["Videos", "on_disk", "plain", "with_extension"]


class Videos:
    """All video files under a root, at most ``depth`` folders down; where ``depth`` is None, files and folders of
    pictures in the first of ``folders`` that is there, else in the root.

    Of several of one name that is taken which is in the folder of its class (named with spaces or with underscores, in
    any case), then that in the earlier of ``folders``, then that of the extension asked for, then the first by name.
    """

    def __init__(self, root: Path, folders: Sequence[str], depth: int | None) -> None:
        there = [root / folder for folder in folders if (root / folder).is_dir()]
        self.place = there[0] if there else root
        self._folders = [f"{folder}{os.sep}" for folder in there]
        self._first: dict[str, str] = {}
        self._others: dict[str, list[str]] = {}
        for name, path in _walk(self.place if depth is None else root, depth):
            name = composed(name)
            if self._first.setdefault(name, path) is not path:
                self._others.setdefault(name, []).append(path)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(name without extension, path) of every one."""
        yield from self._first.items()
        yield from ((name, path) for name, paths in self._others.items() for path in paths)

    def find(self, file: str, folder: str = "") -> str | None:
        """The video that ``file`` names, with another extension or none; ``folder`` is that of its class."""
        name = composed(file.rpartition("/")[2])
        stem, dot, extension = name.rpartition(".")
        if name not in self._first:
            name = stem
        first = self._first.get(name)
        if first is None or name not in self._others:
            return first

        def order(path: str) -> tuple[bool, int, bool]:
            apart = bool(folder) and plain(folder) not in map(plain, path.split(os.sep)[-3:-1])
            place = next((i for i, known in enumerate(self._folders) if path.startswith(known)), len(self._folders))
            return apart, place, not path.lower().endswith(f"{dot}{extension}".lower())

        return min([first, *self._others[name]], key=order)

    def expected(self, file: str, folder: str = "") -> str:
        """Where a missing file would belong: in the folder of its class, where there is one, of the first place."""
        for name in (folder, folder.replace(" ", "_")):
            if name and (self.place / name).is_dir():
                return str(self.place / name / os.path.basename(file))
        return str(self.place / file)


def plain(name: str) -> str:
    """A class's name as folders have it, with spaces or underscores, in any case and any Unicode form."""
    return composed(name).replace("_", " ").lower()


def _walk(folder: str | Path, depth: int | None) -> list[tuple[str, str]]:
    """(name without extension, path) of the video files of a folder by name, then of those in its subfolders, or where
    ``depth`` is None of these themselves."""
    with os.scandir(folder) as entries:
        here = sorted((entry for entry in entries if not hidden(entry.name)), key=lambda entry: entry.name)
    found, folders = [], []
    for entry in here:
        if entry.is_dir():
            folders += [entry] if depth != 0 else []
        elif file_kind(entry.name, lambda: file_head(entry.path)) == "video":  # noqa: B023
            found.append((os.path.splitext(entry.name)[0], entry.path))
    for entry in folders:
        found += [(entry.name, entry.path)] if depth is None else _walk(entry.path, depth - 1)
    return found


def on_disk(path: str) -> str:
    """A path in the form in which the disk has it, where it is not there as it is written.

    Accents are one character or two (NFC and NFD), and lists of Windows part folders by ``\\``. A path of which no form
    is there stays as it is.
    """
    if (path.isascii() and "\\" not in path) or os.path.lexists(path):
        return path
    for form in dict.fromkeys((path, path.replace("\\", "/"))):
        found = os.sep if form.startswith(os.sep) else ""
        for part in filter(None, form.split(os.sep)):
            place = os.path.join(found, part)
            if not part.isascii() and not os.path.lexists(place):
                try:
                    names = os.listdir(found or ".")
                except OSError:
                    break
                place = os.path.join(found, next((name for name in names if composed(name) == composed(part)), part))
            found = place
        else:
            if os.path.lexists(found):
                return found
    return path


def with_extension(path: str) -> list[str]:
    """The videos that a path without an extension may mean, by name; none where it is there or has a video's."""
    folder, name = os.path.split(path)
    if not name or os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS or os.path.lexists(path):
        return []
    try:
        known = _by_stem(folder or ".", os.stat(folder or ".").st_mtime_ns)
    except (OSError, ValueError):
        return []
    return [os.path.join(folder, file) for file in known.get(composed(name), ())]


@functools.lru_cache(maxsize=8)
def _by_stem(folder: str, changed: int) -> dict[str, list[str]]:
    """The video files of a folder, that last changed at a time, by their names without extension."""
    found: dict[str, list[str]] = {}
    for file in sorted(os.listdir(folder)):
        stem, extension = os.path.splitext(file)
        if extension.lower() in VIDEO_EXTENSIONS and not hidden(file):
            found.setdefault(composed(stem), []).append(file)
    return found
