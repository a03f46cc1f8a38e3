"""Kinetics-400, -600 and -700 by their official CSV files.

``label,youtube_id,time_start,time_end,split[,is_cc]``, a file a split, and videos named
``<youtube_id>_<start:06d>_<end:06d>.mp4`` (also ``<id>_<start>_<end>`` or ``<id>`` alone, and any container), in
folders of splits, of classes with spaces or underscores, or flat. A class's number is its place among the sorted labels
of the training file. Some videos of Kinetics are always missing: they stay in the listing, and the index names them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from aim_fast.data.formats import UNLABELLED, Clip, Listing, found
from aim_fast.data.formats.annotation import read_table
from aim_fast.data.formats.videos import Videos
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "SOURCE", "read"]

LAYOUT = (
    "train.csv and val.csv (also in annotations/; columns label,youtube_id,time_start,time_end,split) and videos "
    "as <youtube_id>_<start:06d>_<end:06d>.mp4, flat or in folders of splits or classes"
)
SOURCE = "https://github.com/cvdfoundation/kinetics-dataset"
_NAMES = {"train": ("train",), "validation": ("val", "validate", "validation"), "test": ("test",)}
_FOLDERS = {
    "train": ("train", "videos_train", "train_256", "videos", "compress/train_256"),
    "validation": ("val", "validate", "validation", "videos_val", "val_256", "videos", "compress/val_256"),
    "test": ("test", "videos_test", "videos"),
}
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read(root: Path, split: str, num_classes: int) -> Listing:
    """Clips of ``split`` in the order of its CSV file, for a release of ``num_classes`` classes or a part of it."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected {LAYOUT}")
    file = _csv_file(root, split)
    rows = _rows(file, labelled=split != "test")
    train_file = file if split == "train" else _csv_file(root, "train")
    train = rows if split == "train" else _rows(train_file)
    classes = sorted({row["label"] for _, row in train if row.get("label")})
    if len(classes) > num_classes:
        raise DataError(
            f"{train_file} has {len(classes)} classes, Kinetics-{num_classes} has {num_classes}; give --dataset "
            f"kinetics{600 if len(classes) <= 600 else 700}"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    videos = Videos(root)
    clips, present = [], 0
    for line, row in rows:
        label = row.get("label") or ""
        if label not in numbers and (label or split != "test"):
            raise DataError(f"{file}: line {line} has label {label!r}, which {train_file} has not; use one release's")
        names = _video_names(file, line, row)
        path = next(filter(None, (videos.find(name, label) for name in names)), None)
        present += path is not None
        expected = path or os.path.join(videos.place(_FOLDERS[split], label), f"{names[0]}.mp4")
        clips.append(Clip(expected, numbers.get(label, UNLABELLED), names[0]))
    if clips and not present:
        raise DataError(
            f"none of the {len(clips)} videos of {file} is under {root}, the first is {clips[0].id}.mp4; expected "
            f"{LAYOUT}; {found(root)}"
        )
    return Listing(classes, clips)


def _csv_file(root: Path, split: str) -> Path:
    """``train.csv`` itself, else the shortest name with the split as a word, such as ``kinetics-700_train.csv``."""
    folders = [folder for folder in (root, root / "annotations", root / "labels") if folder.is_dir()]
    files = [file for folder in folders for file in sorted(folder.glob("*.csv"))]
    words = _NAMES[split]
    fitting = [file for file in files if set(words) & set(re.split(r"[^a-z]+", file.stem.lower()))]
    if not fitting:
        hint = ""
        if any((root / name).is_dir() for name in _FOLDERS[split][:2]):
            hint = " (without the CSV files, --dataset folder reads class folders)"
        raise DataError(f"no CSV file of the {split} split in {root}{hint}; expected {LAYOUT}; {found(root)}")
    return min(fitting, key=lambda file: (file.stem.lower() not in words, len(file.name)))


def _rows(file: Path, labelled: bool = True) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of every line under the heading."""
    header, rows = read_table(file)
    lacking = [name for name in _COLUMNS[not labelled :] if name not in header]
    if lacking:
        raise DataError(
            f"{file}: the heading has no {', '.join(lacking)}; expected {','.join(_COLUMNS)},split, found "
            f"{','.join(header)[:80] or 'an empty file'}"
        )
    return rows


def _video_names(file: Path, line: int, row: dict[str, str]) -> tuple[str, ...]:
    """Names that the clip's file may have, the official one first."""
    identity = row.get("youtube_id")
    try:
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
    except (KeyError, ValueError, OverflowError):
        raise DataError(f"{file}: line {line} has no whole time_start and time_end: {row}") from None
    if not identity:
        raise DataError(f"{file}: line {line} has no youtube_id: {row}")
    return f"{identity}_{start:06d}_{end:06d}", f"{identity}_{start}_{end}", identity
