"""A folder of class folders: ``root/train/<class>/<video>`` or ``root/<class>/<video>``.

A class is the uppermost folder: videos may lie in it or in any folder below it, such as one a person or a session. With
split folders (``train``, ``val`` or ``validation``, ``test``) the classes are those of ``train``, sorted by name.
With several labels a clip it lies, under one name, in each of its classes' folders, as a copy or a link. Without split
folders every class is divided here: its files, sorted by name, are permuted by a generator keyed by the class
name alone, the first fifth is for validation and test, the rest for training. Adding a class or changing the seed of
a run moves no file from one side to the other. With several labels a clip the names of all files are divided, not
each class.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aim_fast.data.formats.annotation import composed
from aim_fast.data.formats.extensions import Kind, file_head, file_kind, hidden
from aim_fast.data.formats.gaps import Gaps
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import Clip, Listing
from aim_fast.errors import DataError, abridged

__all__ = ["HELD_OUT", "LAYOUT", "held_out", "read"]

LAYOUT = Layout(
    text="train/<class>/<video> with val/ (or validation/) and test/, or <class>/<video>",
    source="your own videos",
    labels="any",
)
HELD_OUT = 0.2
_LIKE_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval")


def read(data: DataRoot) -> Listing:
    """Clips of a split, by class and then by name."""
    if not any(data.of(split).find_folder() for split in LAYOUT.splits):
        return _divided(data)
    folder, train = _split_folder(data), _split_folder(data.of("train"))
    here = _classes(data, folder, data.gaps)
    of_train = Gaps()
    classes = here if folder == train else _classes(data, train, of_train)
    unknown = sorted(set(here) - set(classes))
    if unknown:
        passed = "".join(f" ({line})" for line in of_train.lines[:1])
        raise DataError(
            f"{folder} has classes that train has not: {', '.join(unknown[:5])}{passed}; move or rename them"
        )
    data.later.append(lambda: _note_beside(data))
    clips = [
        Clip(os.path.join(folder, file), label, _id(data, file))
        for label, name in enumerate(classes)
        for file in here.get(name, ())
    ]
    return Listing(list(classes), clips)


def _id(data: DataRoot, file: str) -> str:
    """A clip's name: its path, or where it may be in several class folders the part below them."""
    return file.partition("/")[2] if data.multi_label else file


def _split_folder(data: DataRoot) -> Path:
    if folder := data.find_folder():
        return folder
    raise data.refusal(f"{data.path} has no {' or '.join(data.split_names)} folder for the {data.split} split")


def _divided(data: DataRoot) -> Listing:
    classes = _classes(data, data.path, data.gaps)
    data.gaps.clips = sum(map(len, classes.values()))
    if data.multi_label:
        return Listing(list(classes), _divided_by_name(data, classes))
    clips = []
    for label, (name, files) in enumerate(classes.items()):
        apart = held_out(name, len(files))
        chosen = [file for i, file in enumerate(files) if (i in apart) != (data.split == "train")]
        clips += [Clip(str(data.path / file), label, file) for file in chosen]
    return Listing(list(classes), clips)


def held_out(name: str, files: int) -> set[int]:
    """Which of a class's files, by their places in order of their names, are for validation and test."""
    order = np.random.Generator(np.random.Philox(key=zlib.crc32(os.fsencode(name)))).permutation(files)
    return set(order[: int(np.ceil(files * HELD_OUT)) if files > 1 else 0].tolist())


def _divided_by_name(data: DataRoot, classes: dict[str, list[str]]) -> list[Clip]:
    """Clips of a split where one may be in several class folders: all that have one name are on the same side."""
    clips = [
        Clip(str(data.path / file), label, _id(data, file))
        for label, files in enumerate(classes.values())
        for file in files
    ]
    names = sorted({clip.id for clip in clips})
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(names))
    apart = {names[place] for place in order[: int(np.ceil(len(names) * HELD_OUT))]}
    return [clip for clip in clips if (clip.id in apart) != (data.split == "train")]


def _note_beside(data: DataRoot) -> None:
    """Videos under the root that are in none of the split folders."""
    taken = {folder.name for split in LAYOUT.splits if (folder := data.of(split).find_folder())}
    found = _look(data.path, but=taken)
    data.gaps.note("videos outside the folders of the splits", found.files["video"])


def _classes(data: DataRoot, folder: Path, gaps: Gaps) -> dict[str, list[str]]:
    """Names of classes in order, and their videos in order of their paths below ``folder``.

    Folders whose names differ in their Unicode form alone are one class.
    """
    classes: dict[str, list[str]] = {}
    empty, lost, like_splits, unknown = [], [], [], []
    inside = "" if folder == data.path else f"{folder.name}/"
    above = _look(folder, but=None)
    for name in sorted(above.folders):
        found = _look(folder / name)
        videos = [f"{name}/{file}" for file in found.files["video"]]
        if videos and folder == data.path and name.lower() in _LIKE_SPLITS and not found.flat:
            like_splits.append(inside + name)
        elif videos:
            classes.setdefault(composed(name), []).extend(videos)
        elif found.files["unknown"] or found.files["beside"]:
            kinds = Counter(os.path.splitext(file)[1].lower() or "no extension" for file in found.others)
            lost.append(f"{inside}{name} ({', '.join(f'{count} of {kind}' for kind, count in kinds.most_common(2))})")
        elif not found.files["text"]:
            empty.append(inside + name)
        unknown += [f"{inside}{name}/{file}" for file in found.files["unknown"] if videos]
    if not classes:
        raise data.refusal(f"{folder} has no class folder with videos in it", folder)
    if len(classes) == 1:
        _refuse_wrapped(folder, *classes)
    gaps.note("files that are no videos by their extension", unknown, lost=True)
    gaps.note("videos beside the class folders", [inside + name for name in above.files["video"]], lost=True)
    gaps.note("folders without a file", empty)
    gaps.lose("class folders without a video", lost)
    gaps.lose("folders named like splits, which are train, val and test in small letters,", like_splits)
    return {name: sorted(classes[name], key=composed) for name in sorted(classes)}


def _refuse_wrapped(folder: Path, name: str) -> None:
    """DataError where the one class is a folder of several folders alone, which will be the classes."""
    found = _look(folder / name)
    inside = sorted({file.split("/")[0] for file in found.files["video"]})
    if not found.flat and any(word.lower() in _LIKE_SPLITS for word in inside):
        raise DataError(f"{folder} has no class folder, but {name}/ with {abridged(inside)}; give {folder / name}")
    if not found.flat and len(inside) > 1:
        raise DataError(
            f"{folder} has no class folder with videos in it but {name}/, a folder of folders ({abridged(inside)}): "
            f"are these the classes? Move them up to {folder}"
        )


@dataclass(slots=True)
class _Found:
    """What a folder holds: files by their kinds, by paths below it, in order; and the names of its folders."""

    files: dict[Kind, list[str]] = field(default_factory=lambda: {"video": [], "text": [], "beside": [], "unknown": []})
    folders: list[str] = field(default_factory=list)

    @property
    def flat(self) -> bool:
        """Whether a video lies in the folder itself."""
        return any("/" not in file for file in self.files["video"])

    @property
    def others(self) -> list[str]:
        """Files that are neither videos nor about them."""
        return self.files["unknown"] + self.files["beside"]


def _look(folder: Path, but: Collection[str] | None = ()) -> _Found:
    """A folder with all that is below it but its folders ``but``; the folder alone where this is None."""
    found = _Found()

    def walk(path: str, below: str, real: str, above: frozenset[str]) -> None:
        try:
            with os.scandir(path) as entries:
                visible = [entry for entry in entries if not hidden(entry.name)]
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        for entry in visible:
            if not entry.is_dir():
                found.files[file_kind(entry.name, lambda: file_head(entry.path))].append(below + entry.name)  # noqa: B023
                continue
            if not below:
                found.folders.append(entry.name)
            target = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
            if but is not None and (below or entry.name not in but) and target not in above:  # a link may lead back
                walk(entry.path, f"{below}{entry.name}/", target, above | {target})

    real = os.path.realpath(folder)
    walk(str(folder), "", real, frozenset({real}))
    for files in found.files.values():
        files.sort()
    return found
