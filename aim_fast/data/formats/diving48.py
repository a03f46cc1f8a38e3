"""Diving-48, version 2 of its labels.

``Diving48_V2_train.json`` and ``Diving48_V2_test.json`` are lists of objects with ``vid_name`` and ``label``;
``Diving48_vocab.json`` names the 48 dives by their take-off, somersaults, twists and flight. Videos are
``<vid_name>.mp4`` in ``rgb/``. The test list serves as the validation split: there is no other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aim_fast.data.formats import Clip, Listing, found
from aim_fast.data.formats.annotation import find_annotation, read_json
from aim_fast.data.formats.videos import Videos
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "SOURCE", "read"]

LAYOUT = (
    "Diving48_V2_train.json, Diving48_V2_test.json and Diving48_vocab.json (or train.json, test.json, vocab.json; also "
    "in annotations/) and videos as rgb/<vid_name>.mp4"
)
SOURCE = "http://www.svcl.ucsd.edu/projects/resound/dataset.html (labels of version 2)"
_FILES = {"train": "train.json", "validation": "test.json", "test": "test.json"}


def read(root: Path, split: str) -> Listing:
    """Clips of ``split`` in the order of its JSON file."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected {LAYOUT}")
    classes = _classes(_file(root, "vocab.json"))
    file = _file(root, _FILES[split])
    entries = read_json(file)
    if not isinstance(entries, list):
        raise DataError(f"{file} holds no list of entries; expected objects with vid_name and label")
    videos = Videos(root)
    place = videos.place(("rgb", "videos"))
    clips = []
    for position, entry in enumerate(entries):
        name, label = _entry(file, position, entry, len(classes))
        clips.append(Clip(videos.find(name) or str(place / f"{name}.mp4"), label, name))
    if clips and not any(videos.find(clip.id) for clip in clips):
        raise DataError(
            f"none of the {len(clips)} videos of {file} is under {root}, the first is {clips[0].id}.mp4; expected "
            f"{LAYOUT}; {found(root)}"
        )
    return Listing(classes, clips)


def _file(root: Path, name: str) -> Path:
    file = find_annotation(root, [prefix + name for prefix in ("Diving48_V2_", "Diving48_", "")])
    if file is None:
        raise DataError(f"Diving48_V2_{name} not found in {root} or its annotations/; expected {LAYOUT}; {found(root)}")
    return file


def _classes(file: Path) -> list[str]:
    vocabulary = read_json(file)
    if not isinstance(vocabulary, list) or not all(isinstance(parts, (list, str)) for parts in vocabulary):
        raise DataError(f"{file} is no list of dives; expected entries such as ['Back', '15som', '05Twis', 'FREE']")
    return [parts if isinstance(parts, str) else " ".join(map(str, parts)) for parts in vocabulary]


def _entry(file: Path, position: int, entry: Any, num_classes: int) -> tuple[str, int]:
    if not isinstance(entry, dict) or "vid_name" not in entry:
        raise DataError(f"{file}: entry {position} is no object with a vid_name; expected {LAYOUT}")
    label = entry.get("label")
    if not isinstance(label, int) or not 0 <= label < num_classes:
        raise DataError(
            f"{file}: entry {position} ({entry['vid_name']}) has label {label!r}, none of the {num_classes} of the "
            "vocabulary; use the files of one release"
        )
    return str(entry["vid_name"]), label
