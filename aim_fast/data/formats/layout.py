"""Where the files of a data set lie, and what is said where they do not.

In: a root, a split, and the :class:`Layout` that a format declares. Out: a :class:`DataRoot`, by which the format finds
its annotation files and videos; what is not there is refused in one wording, with what was expected and what is there.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from aim_fast.data.formats.gaps import Gaps
from aim_fast.data.formats.listing import Clip, Entry
from aim_fast.data.formats.videos import Videos, plain
from aim_fast.errors import DataError, abridged

__all__ = ["SPLIT_NAMES", "DataRoot", "Layout"]

SPLIT_NAMES = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}


@dataclass(frozen=True, slots=True)
class Layout:
    """What a format expects under its root.

    Attributes:
        text: all of it in one line, for people.
        source: where the data set can be had, in one line.
        splits: what the files or folders of each split are called, the usual name first.
        annotation: folders that annotation files may be in, behind the root itself; ``..`` where the root may be the
            folder of the videos.
        prefixes: what the names of annotation files may begin with, the official one first.
        videos: folders that the videos may be in, the official one first, ``{}`` for each name of the split.
        depth: how many folders below the root videos are looked for, as root/videos/train/<class>/<video> is 3.
        pictures: a video may be a folder of pictures; it is looked for at the top of the first of ``videos`` alone.
        file: the root may be an annotation file itself.
        classes: how many the published data set has; 0 for a user's own.
        labels: how many labels a clip has: one, several, or any: as many as the user says.
    """

    text: str
    source: str
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: SPLIT_NAMES)
    annotation: tuple[str, ...] = ("annotations", "labels")
    prefixes: tuple[str, ...] = ("",)
    videos: tuple[str, ...] = ("videos",)
    depth: int = 3
    pictures: bool = False
    file: bool = False
    classes: int = 0
    labels: Literal["one", "several", "any"] = "one"


class DataRoot:
    """One split of a data set on this disk, as its format looks for it.

    Attributes: ``path``, ``split`` and ``layout``; ``multi_label``, whether a clip may have several labels; ``asked``
    and ``present``, how many clips were looked for by name and how many of them are there, at the paths ``taken``;
    ``gaps``, what the format passes over, and ``later`` what finds more of it, called where it is asked for.
    """

    def __init__(self, path: Path, split: str, layout: Layout, multi_label: bool = False) -> None:
        """Raises DataError for a root that is not there, is empty, or is a file where a folder is expected."""
        self.path, self.split, self.layout, self.multi_label = path, split, layout, multi_label
        self.asked = self.present = 0
        self.taken: set[str] = set()
        self.gaps = Gaps()
        self.later: list[Callable[[], None]] = []
        if not path.exists():
            raise DataError(f"data root {path} does not exist; expected {layout.text}")
        if path.is_dir():
            if not any(path.iterdir()):
                raise DataError(f"data root {path} is empty; expected {layout.text}")
        elif not layout.file:
            raise DataError(f"{path} is not a folder; expected {layout.text}")

    def of(self, split: str) -> DataRoot:
        """Another split of the same data set."""
        return DataRoot(self.path, split, self.layout, self.multi_label)

    @property
    def split_names(self) -> tuple[str, ...]:
        """What files or folders of this split are called."""
        return self.layout.splits[self.split]

    @property
    def folder(self) -> Path:
        """The root, or the folder that it is in where it is a file."""
        return self.path if self.path.is_dir() else self.path.parent

    def find_folder(self) -> Path | None:
        """The folder named after this split; None where there is none."""
        return next((self.path / name for name in self.split_names if (self.path / name).is_dir()), None)

    @cached_property
    def places(self) -> list[Path]:
        """The folders that may hold annotation files and are there, in the order in which they are looked into."""
        inside = (self.path / name for name in self.layout.annotation if ".." not in name)
        beside = (os.path.normpath(self.path.absolute() / name) for name in self.layout.annotation if ".." in name)
        return [place for place in (self.path, *inside, *map(Path, beside)) if place.is_dir()]

    @cached_property
    def videos(self) -> Videos:
        """Every video under the root, by name."""
        folders = [folder.format(name) for folder in self.layout.videos for name in self.split_names]
        return Videos(self.folder, list(dict.fromkeys(folders)), None if self.layout.pictures else self.layout.depth)

    def find_annotation(self, *names: str) -> Path | None:
        """The first file of one of these names, with any of the layout's prefixes; None where there is none."""
        full = [prefix + name for prefix in self.layout.prefixes for name in names]
        return next((place / name for place in self.places for name in full if (place / name).is_file()), None)

    def annotation(self, *names: str) -> Path:
        """:meth:`find_annotation`; DataError where there is none."""
        file = self.find_annotation(*names)
        if file is None:
            official = self.layout.prefixes[0] + names[0]
            raise self.refusal(f"{official} not found in {self.path} or its {self.layout.annotation[0]}/")
        return file

    def find(self, file: str, folder: str) -> str | None:
        """The video that an annotation names (see :meth:`clip`), in this split or in none."""
        path = self.videos.find(file, folder)
        if path is not None:
            self.taken.add(path)
        return path

    def clip(self, id: str, label: int, *files: str, folder: str = "", place: str = "") -> Clip:
        """The clip whose video has one of these names, whatever its folder and extension.

        Args:
            files: below the folder of the videos; where none is there, the first says where it would belong.
            folder: of its class, which decides between videos of one name.
            place: where the annotations name it, such as "train.csv line 3".
        """
        self.asked += 1
        for file in files:
            if path := self.find(file, folder):
                self.present += 1
                return Entry(path, label, id, place)
        return Entry(self.videos.expected(files[0], folder), label, id, place)

    def found_gaps(self, name: str, classes: Sequence[str], published: int, read: Callable[[DataRoot], object]) -> Gaps:
        """What is under the root and no clip is made of.

        Args:
            classes: that the annotations name, of the ``published`` ones of data set ``name``.
            read: the format's, by which it is known what the other splits' annotations name.
        """
        for find_more in self.later:
            find_more()
        self.later.clear()
        if len(classes) < published:
            self.gaps.lines.append(f"the annotations have {len(classes)} of {published} classes of {name}")
        if self.taken:
            self._note_unlisted(set(map(plain, classes)), read)
        return self.gaps

    def _note_unlisted(self, classes: set[str], read: Callable[[DataRoot], object]) -> None:
        """A folder beside class folders is a class that is lost where no split's annotations name a video of it, nor
        this split's one of its name; other such videos are said with the training split."""
        unlisted = [path for _, path in self.videos if path not in self.taken]
        beside = {os.path.dirname(folder) for folder in map(os.path.dirname, self.taken) if _named(folder, classes)}
        apart = Counter(map(os.path.dirname, unlisted))
        here = {plain(os.path.basename(os.path.dirname(path))) for path in self.taken}
        lost = {folder for folder in apart if os.path.dirname(folder) in beside and not _named(folder, here)}
        if not lost and (self.split != "train" or not unlisted):
            return
        taken = set(self.taken)
        for split in self.layout.splits:
            if split != self.split:
                other = self.of(split)
                other.videos = self.videos
                with contextlib.suppress(DataError):
                    read(other)
                taken |= other.taken
        lost -= set(map(os.path.dirname, taken))
        inside = [f"{os.path.relpath(folder, self.folder)} ({apart[folder]} videos)" for folder in sorted(lost)]
        self.gaps.lose("class folders of which no list names a video", inside)
        if self.split == "train":
            names = {name for name, path in self.videos if path in taken}  # of a copy, in another place, too
            others = [
                os.path.relpath(path, self.folder)
                for name, path in self.videos
                if name not in names and os.path.dirname(path) not in lost and name not in self.layout.annotation
            ]
            self.gaps.note("videos that no list names", others)

    def refusal(self, what: str, folder: Path | None = None) -> DataError:
        """The error to raise: what is wrong, what was expected, and what ``folder`` (the root's) holds instead."""
        entries = sorted(os.scandir(folder or self.folder), key=lambda entry: entry.name)
        there = abridged([entry.name + "/" * entry.is_dir() for entry in entries if entry.name[0] != "."], 6)
        return DataError(f"{what}; expected {self.layout.text}; found: {there or 'nothing'}")


def _named(folder: str, classes: set[str]) -> bool:
    """Whether a folder has the name of one of these classes."""
    return plain(os.path.basename(folder)) in classes
