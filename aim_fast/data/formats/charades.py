"""Charades: several actions a video.

``Charades_v1_train.csv`` and ``Charades_v1_test.csv`` have a row a video, its name in ``id`` and its actions in
``actions`` as ``c092 11.90 21.20;c147 0.00 12.60``, class and seconds, or nothing; ``Charades_v1_classes.txt`` has
``c092 Closing a window`` a line. A clip is a whole video with all its actions. Videos are ``Charades_v1_480/<id>.mp4``.
The test list serves as the validation split: there is no other.
"""

from __future__ import annotations

import re
from pathlib import Path

from aim_fast.data.formats.annotation import class_name, numbered_lines, read_table
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import UNLABELLED, Listing
from aim_fast.errors import DataError, nearest

__all__ = ["LAYOUT", "read"]

LAYOUT = Layout(
    text="Charades_v1_train.csv, Charades_v1_test.csv and Charades_v1_classes.txt (also in Charades/ or annotations/) "
    "and videos as Charades_v1_480/<id>.mp4",
    source="https://prior.allenai.org/projects/charades",
    splits={"train": ("train",), "validation": ("test",), "test": ("test",)},
    annotation=("Charades", "annotations", "labels"),
    prefixes=("Charades_v1_", ""),
    videos=("Charades_v1_480", "Charades_v1", "videos"),
    classes=157,
    labels="several",
)


def read(data: DataRoot) -> Listing:
    """Clips of a split in the order of its list."""
    names = _classes(data.annotation("classes.txt"))
    numbers = {key: number for number, key in enumerate(names)}
    file = data.annotation(f"{data.split_names[0]}.csv")
    headings, rows = read_table(file, ("id", "actions"))
    if lacking := {"id", "actions"} - set(headings):
        raise DataError(f"{file}: has no column {min(lacking)}; is it the list of Charades?")
    clips = []
    for line, row in rows:
        if not (name := row.get("id", "")):
            raise DataError(f"{file}: line {line} has no id; download the list again")
        labels = []
        for action in filter(None, map(str.strip, row.get("actions", "").split(";"))):
            key = action.split()[0]
            if key not in numbers:
                raise DataError(f"{file}: line {line} ({name}) has action {key!r}; {nearest(key, list(numbers))}")
            labels.append(numbers[key])
        clips.append(data.clip(name, UNLABELLED, f"{name}.mp4", place=f"{file.name} line {line}").labelled(labels))
    return Listing(list(names.values()), clips)


def _classes(file: Path) -> dict[str, str]:
    """Names of the classes by their keys, such as c092, in order."""
    found: dict[str, str] = {}
    for line, text in numbered_lines(file):
        match = re.fullmatch(r"(?P<key>c\d{3})\s+(?P<name>\S.*)", text)
        if match is None or match["key"] in found:
            raise DataError(f"{file}: line {line} is not 'c000 Name', each key once: {text[:60]!r}")
        found[match["key"]] = class_name(match["name"])
    return dict(sorted(found.items()))
