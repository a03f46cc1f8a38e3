"""A text list of ``path label``, one clip a line, space or comma between.

A line is divided from the right after the video's extension, so paths and class names may hold spaces. Paths are
absolute, or relative to the list or to its data root. Labels are all integers, or all class names. The root is a
folder holding ``train.txt`` and ``val.txt`` (or ``validation.txt``, ``test.txt``, ``*_list.txt``, ``.csv``), or a list
itself: then the other splits are its siblings with "train" replaced in the name. A list whose name holds no split's
name serves whichever split is asked for.

Class names come from ``classes.txt`` beside the list (a name a line) where there is one, else from the training list,
so that every split numbers them alike.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from aim_fast.data.formats.annotation import class_number, numbered_lines, read_lines
from aim_fast.data.formats.extensions import VIDEO_EXTENSIONS
from aim_fast.data.formats.layout import SPLIT_NAMES, DataRoot, Layout
from aim_fast.data.formats.listing import Clip, Listing
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "read", "rewrite_list"]

LAYOUT = Layout(
    text="train.txt and val.txt with lines 'path label' (space or comma; integers or class names), or such a file",
    source="your own videos",
    annotation=(),
    file=True,
)
_CLASS_FILES = ("classes.txt", "labels.txt")
_TAILS = (".txt", ".csv", "_list.txt", "list.txt")
_EXTENSION = "|".join(re.escape(extension) for extension in sorted(VIDEO_EXTENSIONS))
_ENTRY = re.compile(rf"^(?P<path>.*(?:{_EXTENSION}))\"?(?:\s*,\s*|\s+)(?P<label>\S.*)$", re.IGNORECASE)


def read(data: DataRoot) -> Listing:
    """Clips of a split in the order of the list."""
    file, train = _find(data), _find(data.of("train"))
    if file is None:
        names = " or ".join(f"{name}.txt" for name in data.split_names)
        raise data.refusal(f"no list for the {data.split} split at {data.path} (looked for {names})")
    entries = _entries(file)
    known = entries if train in (None, file) else _entries(train)
    named = _named_classes(file)
    classes = named or _classes(known)
    numbers = {name: number for number, name in enumerate(classes)}
    # an integer is a class's number only where the classes are numbers, or have their names in a file of their own
    integers = _integers(entries) and (bool(named) or _integers(known))
    clips = []
    for line, path, label in entries:
        number = int(label) if integers else numbers.get(label, -1)
        if not 0 <= number < len(classes):
            raise DataError(
                f"{file}: line {line} has label {label!r}, none of the {len(classes)} classes of {train or file}"
            )
        clips.append(Clip(_located(path, file.parent, data.folder), number, path))
    return Listing(classes, clips)


def rewrite_list(file: Path, root: Path, targets: dict[str, str], extension: str) -> str:
    """The text of a list whose clips are elsewhere, in order and with their labels.

    A file that is no list, such as ``classes.txt``, is given back as it is. ``targets`` holds the new path of every
    clip's old one; a clip that has none keeps its line under the new extension.
    """
    if file.name in _CLASS_FILES:
        return "\n".join(read_lines(file)) + "\n"
    folder = root if root.is_dir() else root.parent
    lines = []
    for _, path, label in _entries(file):
        old = _located(path, file.parent, folder)
        lines.append(f"{targets.get(old, os.path.splitext(path)[0] + extension)} {label}")
    return "\n".join(lines) + "\n"


def _find(data: DataRoot) -> Path | None:
    """The list of a split for a root that is a folder or itself a list."""
    root = data.path
    if root.is_dir():
        return data.find_annotation(*(name + tail for name in data.split_names for tail in _TAILS))
    words = [name for names in SPLIT_NAMES.values() for name in sorted(names, key=len, reverse=True)]
    word = next((word for word in words if word in root.name), None)
    if word is None or word in data.split_names:
        return root
    siblings = (root.with_name(root.name.replace(word, name)) for name in data.split_names)
    return next((sibling for sibling in siblings if sibling.is_file()), None)


def _entries(file: Path) -> list[tuple[int, str, str]]:
    """(line number, path, label) of every line that is not blank; a heading 'path,label' is passed over."""
    entries = []
    for number, line in numbered_lines(file):
        if number == 1 and re.fullmatch(r"\w+\s*[, ]\s*label\w*", line, re.I):
            continue
        match = _ENTRY.match(line) or re.match(r"^(?P<path>.+)[\s,]+(?P<label>[^\s,]+)$", line)
        if not match:
            raise DataError(f"{file}: line {number} is not 'path label': {line[:80]!r}")
        entries.append((number, match["path"].strip(' "'), match["label"].strip(' "')))
    if not entries:
        raise DataError(f"{file} lists no clips; expected {LAYOUT.text}")
    return entries


def _integers(entries: list[tuple[int, str, str]]) -> bool:
    return all(class_number(label) is not None for _, _, label in entries)


def _named_classes(file: Path) -> list[str]:
    for name in _CLASS_FILES:
        if (file.parent / name).is_file() and (file.parent / name) != file:
            return [line for _, line in numbered_lines(file.parent / name)]
    return []


def _classes(train: list[tuple[int, str, str]]) -> list[str]:
    if _integers(train):
        return [str(number) for number in range(1 + max(int(label) for _, _, label in train))]
    return sorted({label for _, _, label in train})


def _located(path: str, beside: Path, root: Path) -> str:
    if os.path.isabs(path):
        return path
    under_list = os.path.join(beside, path)
    under_root = os.path.join(root, path)
    return under_root if under_root != under_list and not os.path.exists(under_list) else under_list
