"""Kinetics-400, -600 and -700 by their official CSV files.

``label,youtube_id,time_start,time_end,split[,is_cc]``, a file a split, and videos named
``<youtube_id>_<start:06d>_<end:06d>.mp4`` (also ``<id>_<start>_<end>`` or ``<id>`` alone, and any container), in
folders of splits, of classes with spaces or underscores, or flat. A class's number is its place among the sorted labels
of the training file. Some videos of Kinetics are always missing: they stay in the listing, and the index names them.
"""

from __future__ import annotations

import re
from pathlib import Path

from aim_fast.data.formats.annotation import class_name, read_table
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import UNLABELLED, Listing
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "read"]

LAYOUT = Layout(
    text="train.csv and val.csv (also in annotations/; columns label,youtube_id,time_start,time_end,split) and videos "
    "as <youtube_id>_<start:06d>_<end:06d>.mp4, flat or in folders of splits or classes",
    source="https://github.com/cvdfoundation/kinetics-dataset",
    splits={"train": ("train",), "validation": ("val", "validate", "validation"), "test": ("test",)},
    videos=("{}", "videos_{}", "{}_256", "videos", "compress/{}_256"),
)
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read(data: DataRoot, num_classes: int) -> Listing:
    """Clips of a split in the order of its CSV file, for a release of ``num_classes`` classes or a part of it."""
    file, train_file = _csv_file(data), _csv_file(data.of("train"))
    rows = _rows(file, labelled=data.split != "test")
    train = rows if data.split == "train" else _rows(train_file)
    classes = sorted({row["label"] for _, row in train if row.get("label")})
    if len(classes) > num_classes:
        raise DataError(
            f"{train_file} has {len(classes)} classes, Kinetics-{num_classes} has {num_classes}; give --dataset "
            f"kinetics{600 if len(classes) <= 600 else 700}"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    clips = []
    for line, row in rows:
        label = row.get("label") or ""
        if label not in numbers and (label or data.split != "test"):
            what = f"label {label!r}, which {train_file} has not; use one release's" if label else "no label"
            raise DataError(f"{file}: line {line} has {what}")
        names = _video_names(file, line, row)
        files = [f"{name}.mp4" for name in names]
        place = f"{file.name} line {line}"
        clips.append(data.clip(names[0], numbers.get(label, UNLABELLED), *files, folder=label, place=place))
    return Listing(classes, clips)


def _csv_file(data: DataRoot) -> Path:
    """``train.csv`` itself, else the shortest name with the split as a word, such as ``kinetics-700_train.csv``."""
    words = data.split_names
    files = [file for place in data.places for file in sorted(place.glob("*.csv"))]
    fitting = [file for file in files if set(words) & set(re.split(r"[^a-z]+", file.stem.lower()))]
    if not fitting:
        hint = " (without the CSV files, --dataset folder reads class folders)" if data.find_folder() else ""
        raise data.refusal(f"no CSV file of the {data.split} split in {data.path}{hint}")
    return min(fitting, key=lambda file: (file.stem.lower() not in words, len(file.name)))


def _rows(file: Path, labelled: bool = True) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of every line under the heading."""
    header, rows = read_table(file, _COLUMNS)
    lacking = [name for name in _COLUMNS[not labelled :] if name not in header]
    if lacking:
        raise DataError(
            f"{file}: the heading has no {', '.join(lacking)}; expected {','.join(_COLUMNS)},split, found "
            f"{','.join(header)[:80] or 'an empty file'}"
        )
    return [(line, row | {"label": class_name(row.get("label", ""))}) for line, row in rows]


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
