"""Diving-48, version 2 of its labels.

``Diving48_V2_train.json`` and ``Diving48_V2_test.json`` are lists of objects with ``vid_name`` and ``label``;
``Diving48_vocab.json`` names the 48 dives by their take-off, somersaults, twists and flight. Videos are
``<vid_name>.mp4`` in ``rgb/``. The test list serves as the validation split: there is no other.
"""

from __future__ import annotations

from pathlib import Path

from aim_fast.data.formats.annotation import class_name, class_number, clip_name, read_entries, read_json
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import Listing
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "read"]

LAYOUT = Layout(
    text="Diving48_V2_train.json, Diving48_V2_test.json and Diving48_vocab.json (or train.json, test.json, vocab.json; "
    "also in annotations/) and videos as rgb/<vid_name>.mp4",
    source="http://www.svcl.ucsd.edu/projects/resound/dataset.html (labels of version 2)",
    splits={"train": ("train",), "validation": ("test",), "test": ("test",)},
    prefixes=("Diving48_V2_", "Diving48_", ""),
    videos=("rgb", "videos"),
    classes=48,
)


def read(data: DataRoot) -> Listing:
    """Clips of a split in the order of its JSON file."""
    classes = _classes(data.annotation("vocab.json"))
    file = data.annotation(f"{data.split_names[0]}.json")
    clips = []
    for position, entry in enumerate(read_entries(file, "vid_name")):
        name, label = clip_name(entry["vid_name"]), class_number(entry.get("label"))
        if name is None:
            raise DataError(f"{file}: entry {position} has vid_name {entry['vid_name']!r}, which names no video")
        if label is None or label >= len(classes):
            raise DataError(
                f"{file}: entry {position} ({name}) has label {entry.get('label')!r}, none of the {len(classes)} of "
                "the vocabulary; use the files of one release"
            )
        clips.append(data.clip(name, label, f"{name}.mp4", place=f"{file.name} entry {position}"))
    return Listing(classes, clips)


def _classes(file: Path) -> list[str]:
    vocabulary = read_json(file)
    if not isinstance(vocabulary, list) or not all(isinstance(parts, (list, str)) for parts in vocabulary):
        raise DataError(f"{file} is no list of dives; expected entries such as ['Back', '15som', '05Twis', 'FREE']")
    return [class_name(parts if isinstance(parts, str) else " ".join(map(str, parts))) for parts in vocabulary]
