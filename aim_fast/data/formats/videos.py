"""The videos of a data set, found by their names whatever their folder and extension."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from aim_fast.data.formats.annotation import VIDEO_EXTENSIONS

__all__ = ["Videos"]

_DEPTH = 3  # root/videos/train/<class>/<video>


class Videos:
    """All video files under a root, at most three folders down.

    Folders of classes may be named with spaces or with underscores, in any case; a file of the same name in the folder
    of its class is preferred to one elsewhere.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_stem: dict[str, list[str]] = {}
        for path in _walk(str(root), _DEPTH):
            stem, _ = os.path.splitext(os.path.basename(path))
            self._by_stem.setdefault(stem, []).append(path)

    def __len__(self) -> int:
        return len(self._by_stem)

    def find(self, stem: str, folder: str = "") -> str | None:
        """The file of this name without its extension, in a folder like ``folder`` where there is a choice."""
        paths = self._by_stem.get(stem)
        if not paths:
            return None
        if folder and len(paths) > 1:
            wanted = _plain(folder)
            return next((path for path in paths if wanted in map(_plain, path.split(os.sep)[-3:-1])), paths[0])
        return paths[0]

    def place(self, folders: tuple[str, ...], class_name: str = "") -> Path:
        """Where a missing file would belong: the first of ``folders`` that exists, and in it the class's folder."""
        base = next((self.root / name for name in folders if (self.root / name).is_dir()), self.root)
        if class_name:
            for name in (class_name, class_name.replace(" ", "_")):
                if (base / name).is_dir():
                    return base / name
        return base


def _plain(name: str) -> str:
    return name.replace("_", " ").lower()


def _walk(folder: str, depth: int) -> Iterator[str]:
    """Video files of a folder by name, then those of its subfolders by name."""
    with os.scandir(folder) as entries:
        here = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    folders = []
    for entry in here:
        if os.path.splitext(entry.name)[1].lower() in VIDEO_EXTENSIONS:
            yield entry.path
        elif depth and entry.is_dir():
            folders.append(entry.path)
    for path in folders:
        yield from _walk(path, depth - 1)
