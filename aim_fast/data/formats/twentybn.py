"""Something-Something v1 and Jester, the two that TwentyBN released as folders of pictures.

``<prefix>labels.csv`` has a class a line, numbered by its line; ``<prefix>train.csv`` and ``validation.csv`` have lines
``id;label``, ``test.csv`` an id. Later downloads of Jester name them ``Train.csv`` and so on, with a heading
``video_id,label,…``. A video is the folder ``<id>/`` of ``00001.jpg``, ``00002.jpg`` …, or ``<id>.webm`` or ``.mp4``.
"""

from __future__ import annotations

import re
from pathlib import Path

from aim_fast.data.formats.annotation import class_name, is_comment, numbered_lines, read_table, unquoted
from aim_fast.data.formats.class_file import read_class_file
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import UNLABELLED, Listing
from aim_fast.errors import DataError

__all__ = ["picture_folders", "read"]


def picture_folders(name: str, classes: int, source: str) -> Layout:
    """The layout of the data set whose annotation files begin with ``name``."""
    return Layout(
        text=f"{name}-labels.csv, {name}-train.csv and {name}-validation.csv (lines id;label, or Train.csv with a "
        f"heading; also in annotations/) and 20bn-{name}/<id>/00001.jpg … or <id>.webm or .mp4",
        source=source,
        prefixes=(f"{name}-", ""),
        videos=(f"20bn-{name}", "videos", "frames", "rawframes"),
        pictures=True,
        classes=classes,
    )


def read(data: DataRoot) -> Listing:
    """Clips of a split in the order of its CSV file; the test split has the labels that its file has."""
    labels_file = data.annotation("labels.csv", "Labels.csv")
    classes = read_class_file(labels_file).names
    numbers = {label: number for number, label in enumerate(classes)}
    file = data.annotation(f"{data.split}.csv", f"{data.split.capitalize()}.csv")
    clips = []
    for line, identity, label in _entries(file):
        if label is not None and label not in numbers:
            raise DataError(f"{file}: line {line} has label {label!r}, which is not in {labels_file}")
        if label is None and data.split != "test":
            raise DataError(f"{file}: line {line} is not 'id;label'; expected {data.layout.text}")
        number = UNLABELLED if label is None else numbers[label]
        clips.append(data.clip(identity, number, identity, place=f"{file.name} line {line}"))
    return Listing(classes, clips)


def _entries(file: Path) -> list[tuple[int, str, str | None]]:
    """(line number, id, label or None) of every line that is not blank."""
    lines = [(number, line) for number, line in numbered_lines(file) if not is_comment(line)]
    if lines and re.split("[;,\t|]", lines[0][1].lower())[0].strip("\"' ") in ("video_id", "id"):
        headings, rows = read_table(file, ("video_id", "id", "label"))
        return [(number, row.get(headings[0], ""), class_name(row.get("label", "")) or None) for number, row in rows]
    entries = []
    for number, line in lines:
        if line.lower().startswith("video_id"):
            raise DataError(f"{file}: the heading begins with {line.split(';')[0].split(',')[0]!r}, not video_id")
        identity, _, label = line.partition(";" if ";" in line else ",")
        entries.append((number, unquoted(identity), class_name(unquoted(label)) or None))
    return entries
