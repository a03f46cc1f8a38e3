"""A text list of clips, one a line: a path and a label, as most tools write them (see columns.py).

Paths are absolute, or relative to the list or to its data root. Labels are all integers, or all class names. The root
is a folder holding ``train.txt`` and ``val.txt`` (or ``validation.txt``, ``test.txt``, ``*_list.txt``, ``.csv``), or a
list itself: then the other splits are its siblings with "train" replaced in the name. A list whose name holds no
split's name serves whichever split is asked for.

Class names come from ``classes.txt`` (or ``labels.txt``) beside the list where there is one, else from the training
list, so that every split numbers them alike.

Where clips may have several labels (see several_labels.py) all that is behind the path is labels, or the column of that
name, and a path may come on several lines, each with some of its labels.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from aim_fast.data.formats.annotation import class_name, class_number, has_several, read_lines, unquoted
from aim_fast.data.formats.class_file import ClassFile, NoClassFile, read_class_file
from aim_fast.data.formats.columns import Sheet, label_column, read_sheet
from aim_fast.data.formats.layout import SPLIT_NAMES, DataRoot, Layout
from aim_fast.data.formats.listing import UNLABELLED, Clip, Entry, Listing
from aim_fast.data.formats.several_labels import part_labels
from aim_fast.data.formats.videos import on_disk, with_extension
from aim_fast.errors import DataError, abridged

__all__ = ["LAYOUT", "read", "rewrite_list"]

LAYOUT = Layout(
    text="train.txt and val.txt with lines 'path label' (space or comma; integers or class names), or such a file",
    source="your own videos",
    annotation=(),
    file=True,
    labels="any",
)
_CLASS_FILES = ("classes.txt", "labels.txt")
_TAILS = (".txt", ".csv", "_list.txt", "list.txt", ".tsv", "_list.csv")
_NO_LABEL = frozenset({"nan", "none", "null", "n/a", "na", "?"})

_Entry = tuple[int, str, str]  # line, path, label


def read(data: DataRoot) -> Listing:
    """Clips of a split in the order of the list."""
    file, train = _find(data), _find(data.of("train"))
    if file is None:
        names = " or ".join(f"{name}.txt" for name in data.split_names)
        raise data.refusal(f"no list for the {data.split} split at {data.path} (looked for {names})")
    sheet = _sheet(file, data)
    first = sheet if train is None or data.split == "train" else _sheet(train, data.of("train"))
    if data.multi_label:
        named, notes = _class_file(file, [(number, cells[sheet.path], "") for number, cells in first.rows + sheet.rows])
        known, entries = (_several_entries(one, named.names if named else ()) for one in (first, sheet))
        labelled = [entry for entry in known if entry[2] != str(UNLABELLED)]
    else:
        known = labelled = _entries(first, sheet)
        entries = known if first is sheet else _entries(sheet, first)
        named, notes = _class_file(file, known + entries)
        if named is None:
            notes += _joined_names(first, known)
    classes, offset = _classes(train or file, labelled, named)
    notes += _like_names(classes)
    numbers, told = {name: number for number, name in enumerate(classes)}, named.file if named else train or file
    # an integer is a class's number only where the classes are numbers, or have their names in a file of their own
    integers = _integers(entries) and (bool(named) or _integers(labelled))
    clips: list[Clip] = []
    name, beside, root = file.name, str(file.parent), str(data.folder)
    for line, path, label in entries:
        place, several = _located(path, beside, root)
        if several:
            names = " and ".join(map(os.path.basename, several))
            raise DataError(f"{file}: line {line} has no file {path!r}, but {names} are there; write which it is")
        number = int(label) - offset if integers else numbers.get(label, -1)
        if label == str(UNLABELLED) and (data.split == "test" or data.multi_label):
            number = UNLABELLED
        elif not 0 <= number < len(classes):
            raise DataError(f"{file}: line {line} has label {label!r}, none of the {len(classes)} classes of {told}")
        clips.append(Entry(place, number, path, f"{name} line {line}"))
    if sheet.passed:
        notes.append(f"{file.name} line {sheet.passed[0]} is taken for a heading: {sheet.passed[1][:60]!r}")
    if sheet.left_out:
        notes.append(f"{file.name}: {sheet.left_out} clips are commented out")
    if sheet.times:
        notes.append(f"{file.name}: {' and '.join(sheet.times)} are not used: clips are whole videos")
    return Listing(classes, clips, tuple(notes))


def rewrite_list(file: Path, root: Path, targets: dict[str, str], extension: str) -> str:
    """The text of a list whose clips are elsewhere, in order and with their labels.

    A file that is no list, such as ``classes.txt``, is given back as it is. ``targets`` holds the new path of every
    clip's old one; a clip that has none keeps its line under the new extension.
    """
    if file.name in _CLASS_FILES:
        return "\n".join(read_lines(file)) + "\n"
    beside, folder = str(file.parent), str(root if root.is_dir() else root.parent)
    sheet = read_sheet(file, lambda path: _there(path, beside, folder))
    lines = []
    for _, path, label in _entries(sheet, sheet):
        old, _ = _located(path, beside, folder)
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


def _sheet(file: Path, data: DataRoot) -> Sheet:
    """The lines of a list that are of the split."""
    there = lambda path: _there(path, str(file.parent), str(data.folder))  # noqa: E731
    sheet = read_sheet(file, there, several=data.multi_label)
    return sheet.of_split(data.split_names)


def _several_entries(sheet: Sheet, names: Collection[str]) -> list[_Entry]:
    """(line number, path, label) of every label of every clip, -1 for a clip without any; labels are parted by what
    part_labels says, with the class ``names`` that a file gives. Raises DataError for a negative label."""
    column = label_column(sheet)
    found = part_labels((cells[column] for _, cells in sheet.rows), names)
    entries = [
        (number, cells[sheet.path], re.sub(r"(?<=\d)\.0*$", "", label))
        for (number, cells), labels in zip(sheet.rows, found)
        for label in labels or [str(UNLABELLED)]
    ]
    if odd := next((entry for entry in entries if re.fullmatch(r"-\d+", entry[2]) and int(entry[2]) < -1), None):
        raise DataError(f"{sheet.file}: line {odd[0]} has a negative label: {odd[2]!r}; expected classes")
    number = next((entry for entry in entries if entry[2].isdecimal() and entry[2] not in names), None)
    if number and not _integers(entries):
        raise DataError(
            f"{sheet.file}: line {number[0]} has the number {number[2]} among labels that are names; write numbers or "
            "names, or head the columns, such as path,frames,label"
        )
    return entries


def _entries(sheet: Sheet, other: Sheet) -> list[_Entry]:
    """(line number, path, label) of every clip; ``other`` is another list, which helps to tell the columns.

    Labels are all numbers (then without fractions of nought), or all names. Raises DataError, with the line, for one
    that is none, and for several in its place.
    """
    column = label_column(sheet, other)
    entries = [(number, cells[sheet.path], cells[column]) for number, cells in sheet.rows]
    if all(label.isdecimal() or re.fullmatch(r"-?\d{1,9}(\.0*)?", label) for _, _, label in entries):
        entries = [(number, path, label.split(".")[0]) for number, path, label in entries]
    counts: Counter[str] = Counter()
    for label, count in Counter(label for _, _, label in entries).items():
        counts[class_name(unquoted(label))] += count
    whole = sum(count for label, count in counts.items() if class_number(label) is not None)
    labels: dict[str, str] = {}
    for number, _, text in entries:
        if text in labels:
            continue
        label = labels.setdefault(text, class_name(unquoted(text)))
        told = ""
        if not label or (label.lower() in _NO_LABEL and (whole or label.lower() == "nan")):
            told = "no label"
        elif whole and label != str(UNLABELLED) and re.fullmatch(r"-\d+", label):
            told = "a negative label"
        elif text.count('"') % 2:
            told = "an open quotation mark"
        elif (text == label and re.search(r"[;|]", label)) or has_several(
            label, counts, sheet.spaced and text == label
        ):
            told = "several labels, or a name that wants quotation marks (none may hold ; or |)"
        elif 2 * whole > len(entries) and not _integer(label) and counts[label] == 1:
            told = "another kind of label than the other lines, which have class numbers"
        if told:
            raise DataError(f"{sheet.file}: line {number} has {told}: {text[:60]!r}; expected one class a line")
    return [(number, path, labels[text]) for number, path, text in entries]


def _joined_names(sheet: Sheet, entries: list[_Entry]) -> list[str]:
    """A note where names look like several labels each: all are parted alike, and parts stand first and behind.

    Raises DataError, with the line, for a comma in a column that is called ``labels``.
    """
    if "labels" in sheet.heading and "label" not in sheet.heading:
        for number, _, label in entries:
            if len([part for part in label.split(",") if part.strip()]) > 1:
                raise DataError(
                    f"{sheet.file}: line {number} has several labels, as the heading says: {label[:60]!r}; expected "
                    "one class a line. Where it is a name, call the column label"
                )
    names = sorted({label for _, _, label in entries})
    for mark in ",;|+/&":
        parts = [[part.strip() for part in name.split(mark)] for name in names]
        if parts and all(len(part) > 1 and all(part) for part in parts):
            both = sorted({part[0] for part in parts} & {word for part in parts for word in part[1:]})
            if both:
                return [
                    f"{sheet.file.name}: are the labels several each? All are joined by {mark}, such as {names[0]!r}, "
                    f"and {both[0]!r} stands in more than one; each is taken for one class"
                ]
    return []


def _like_names(classes: list[str]) -> list[str]:
    """A note of the class names that differ in capitals alone."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(name.casefold(), []).append(name)
    found = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    return [f"class names that differ in capitals alone: {abridged(found, 3)}"] if found else []


def _integers(entries: list[_Entry]) -> bool:
    labels = {label for _, _, label in entries}
    return all(map(_integer, labels))


def _integer(label: str) -> bool:
    return class_number(label) is not None or label == str(UNLABELLED)


def _class_file(file: Path, entries: list[_Entry]) -> tuple[ClassFile | None, list[str]]:
    """The names of classes beside a list, and what is said of a file that is none."""
    notes = []
    for name in _CLASS_FILES:
        place = file.parent / name
        if place.is_file() and place != file:
            clips = {os.path.splitext(os.path.basename(path))[0] for _, path, _ in entries}
            try:
                found = read_class_file(place, clips)
            except NoClassFile as error:
                if name == _CLASS_FILES[0]:
                    raise
                notes.append(f"not taken for class names: {error}")
                continue
            if found.names:
                return found, notes
    return None, notes


def _classes(file: Path, train: list[_Entry], named: ClassFile | None) -> tuple[list[str], int]:
    """Class names, and the label of the first where labels are numbers."""
    labels = {label for _, _, label in train}
    if not _integers(train):
        if named is None:
            return sorted(labels), 0
        return (named.names if labels <= set(named.names) else named.plain), 0
    numbers = [int(label) for label in labels if label != str(UNLABELLED)]
    if named is None:
        return [str(number) for number in range(1 + max(numbers, default=-1))], 0
    if named.first == 1 and 0 not in numbers:
        if max(numbers, default=0) < len(named.names) and min(numbers, default=1) > 0:
            raise DataError(
                f"{file}: its labels have neither 0 nor {len(named.names)}, so that it is not told whether they count "
                f"from 0 or, as the class names beside it, from 1; write the names without numbers"
            )
        return named.names, 1
    return named.names, 0


def _there(path: str, beside: str, root: str) -> bool:
    place, several = _located(path, beside, root)
    return bool(several) or os.path.exists(place)


def _located(path: str, beside: str, root: str) -> tuple[str, list[str]]:
    """Where a clip is, beside the list or else under the root; with an extension where the list leaves it out.

    And the videos that it may mean, where these are several.
    """
    folders = [""] if os.path.isabs(path) else list(dict.fromkeys((beside, root)))
    places = [on_disk(os.path.join(folder, path)) for folder in folders]
    for place in places:
        if os.path.exists(place):
            return place, []
    for place in places:
        if found := with_extension(place):
            return (found[0], []) if len(found) == 1 else (place, found)
    return places[-1], []
