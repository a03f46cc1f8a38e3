"""What labelling tools export, a row a video, made into the clips of a split.

A tool's format gives :class:`Labelled` rows; here they become a listing. A video is found by the end of the path that
the tool has for it, since exports keep paths of another machine: its name, with any extension, and of several of one
name that which has most folders in common. Classes are the labels that stand in any row, sorted.

Splits are those that the rows name; a row that names none is then passed over and named. Where no row names one, every
class is divided as ``folder`` divides it, by the names of the videos.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from aim_fast.data.formats.annotation import class_name, composed
from aim_fast.data.formats.folder import held_out
from aim_fast.data.formats.layout import DataRoot
from aim_fast.data.formats.listing import UNLABELLED, Clip, Entry, Listing
from aim_fast.errors import DataError, abridged

__all__ = ["UNTOLD", "Labelled", "annotation_files", "file_splits", "listing_of", "split_word"]

UNTOLD = "videos without a label"
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, slots=True)
class Labelled:
    """One video of an export.

    Attributes: ``files``, the names that it may have, the tool's own first; ``labels``, of which one is taken;
    ``place``, where it stands, such as "project.json task 7"; ``split``, one of ours or ""; ``lacks``, what it is named
    as where it has no label; ``folder``, whether the video is a folder of pictures.
    """

    files: tuple[str, ...]
    labels: tuple[str, ...]
    place: str
    split: str = ""
    lacks: str = UNTOLD
    folder: bool = False


def split_word(*texts: str) -> str:
    """The split that one of these texts names by a word of it, "" where none or several do."""
    words = {word for text in texts for word in re.split(r"[^a-z]+", text.lower())}
    found = [split for split, names in _SPLITS.items() if words & set(names)]
    return found[0] if len(found) == 1 else ""


def annotation_files(data: DataRoot, *endings: str) -> list[Path]:
    """The root where it is a file itself, else the files of these endings in it, in its annotation folders and in the
    folders of splits."""
    if data.path.is_file():
        return [data.path]
    splits = [data.path / name for names in _SPLITS.values() for name in names]
    places = [*data.places, *(place for place in splits if place.is_dir())]
    files = [file for place in dict.fromkeys(places) for file in sorted(place.iterdir())]
    return [file for file in files if file.suffix.lower() in endings and file.is_file() and file.name[0] != "."]


def file_splits(data: DataRoot, files: Sequence[Path]) -> dict[Path, str]:
    """The split that each file is of by its folder or by its name, "" where neither says: a word in a longer name, such
    as ``my-test-project.json``, counts where others name other splits."""
    words = {file: split_word(file.stem) for file in files}
    exact = {word for names in _SPLITS.values() for word in names}
    several = len(set(filter(None, words.values()))) > 1
    return {
        file: split_word(file.parent.name if file.parent != data.folder else "")
        or (word if several or file.stem.lower() in exact else "")
        for file, word in words.items()
    }


def listing_of(data: DataRoot, rows: Sequence[Labelled], notes: Sequence[str] = ()) -> Listing:
    """Clips of a split in the order of the rows.

    Raises DataError for a video with several labels, or of whose name several are there, and where none has a label.
    """
    rows = [replace(row, labels=tuple(sorted(set(filter(None, map(class_name, row.labels)))))) for row in rows]
    several = [f"{row.place}: {' and '.join(map(repr, row.labels))}" for row in rows if len(row.labels) > 1]
    if several:
        raise DataError(
            f"{data.path}: {len(several)} {'video has' if len(several) == 1 else 'videos have'} several labels, "
            f"{abridged(several, 3)}; leave one a video"
        )
    if data.split != "test" and not any(row.labels for row in rows):
        first = abridged(list(map(_shown, rows)), 3)
        raise data.refusal(f"no {data.split} clips in {data.path}, where all are {rows[0].lacks}: {len(rows)}, {first}")
    videos = _Videos(data)
    places = {row: videos.find(row) for row in rows}
    _check_labels(data, places)
    told = any(row.split for row in rows)
    classes = sorted({row.labels[0] for row in rows if row.labels})
    numbers = {name: number for number, name in enumerate(classes)}
    chosen = _of_split(data, rows, told)
    clips: list[Clip] = []
    passed: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        place = places[row]
        if not row.labels and not (row.split == data.split == "test"):
            passed[row.lacks].append(_shown(row))
        elif told and not row.split:
            passed["videos of no split"].append(_shown(row))
        elif row in chosen:
            data.asked += 1
            data.present += place is not None
            label = numbers[row.labels[0]] if row.labels else UNLABELLED
            clips.append(
                Entry(place or data.videos.expected(os.path.basename(row.files[-1])), label, row.files[0], row.place)
            )
    for what, names in passed.items():
        data.gaps.note(what, names, lost=what == "videos of no split")
    return Listing(classes, clips, tuple(notes))


def _shown(row: Labelled) -> str:
    return f"{row.files[0] if row.files else 'no name'} ({row.place})"


def _check_labels(data: DataRoot, places: Mapping[Labelled, str | None]) -> None:
    """Raises DataError for a video that rows of two labels name, which could come into two splits."""
    known: dict[str, Labelled] = {}
    contrary = []
    for row, place in places.items():
        if place is not None and row.labels and (first := known.setdefault(place, row)).labels != row.labels:
            contrary.append(f"{_shown(first)[:-1]} and {row.place}: {first.labels[0]!r} and {row.labels[0]!r})")
    if contrary:
        raise DataError(
            f"{data.path}: {len(contrary)} {'video has' if len(contrary) == 1 else 'videos have'} two labels, "
            f"{abridged(contrary, 3)}; leave one a video"
        )


def _of_split(data: DataRoot, rows: Sequence[Labelled], told: bool) -> set[Labelled]:
    if told:
        return {row for row in rows if row.split == data.split}
    members: dict[str, dict[str, list[Labelled]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.labels:
            members[row.labels[0]][row.files[0]].append(row)  # a video that stands there twice is on one side
    chosen: set[Labelled] = set()
    for name, videos in members.items():
        names = sorted(videos)
        apart = held_out(name, len(names))
        for number, video in enumerate(names):
            if (number in apart) != (data.split == "train"):
                chosen.update(videos[video])
    return chosen


class _Videos:
    """The videos under a root, found by the ends of paths."""

    def __init__(self, data: DataRoot) -> None:
        self.data = data

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for stem, path in self.data.videos:
            found[stem].append(path)
        return found

    def find(self, row: Labelled) -> str | None:
        """The path of a row's video, taken; None where it is not there."""
        for file in dict.fromkeys((*row.files, *map(unquote, row.files))):  # as written, then as of an address
            path = self._folder(file) if row.folder else self._file(file, row)
            if path is not None:
                self.data.taken.add(path)
                return path
        return None

    def _folder(self, name: str) -> str | None:
        root = self.data.folder
        places = [root / name, *(root / folder / name for folder in self.data.layout.videos)]
        return next((str(place) for place in places if place.is_dir()), None)

    def _file(self, file: str, row: Labelled) -> str | None:
        place = os.path.join(self.data.folder, file)  # the path itself where it begins at the top
        if os.path.isfile(place):
            return place
        *folders, name = composed(file).split("/")
        stem, extension = os.path.splitext(name)

        def likeness(path: str) -> tuple[int, bool]:
            above = composed(path).split(os.sep)[:-1]
            same = next(
                (i for i, (one, other) in enumerate(zip(reversed(folders), reversed(above))) if one != other),
                min(len(folders), len(above)),
            )
            return same, path.lower().endswith(extension.lower())

        found = sorted(self.by_stem.get(stem, ()), key=likeness)
        if len(found) > 1 and likeness(found[-1]) == likeness(found[-2]):
            raise DataError(
                f"{self.data.path}: {row.place} names {file!r}, which may be {found[-2]} or {found[-1]}; rename one of "
                "them, or lay the videos in the folders that the export names"
            )
        return found[-1] if found else None
