"""Tar shards in WebDataset's layout, on a local or mounted disk.

``train-000000.tar``, ``train-000001.tar`` and so on, with ``val-`` (or ``validation-``) and ``test-``, or folders of
these names with tars in them. A sample is a video with a ``.cls`` (a class's number or name) or a ``.json`` with a
``label``. Class names come from ``classes.txt`` at the root, a name a line, else from the training shards. Every video
is read at its own offset, so order, resumption and the number of processes mean for shards what they mean for files;
``--read-order shards`` reads whole shards one after another instead.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from aim_fast.data.formats.annotation import class_name, class_number, has_several, numbered_lines
from aim_fast.data.formats.class_file import read_class_file
from aim_fast.data.formats.extensions import hidden
from aim_fast.data.formats.gaps import Gaps
from aim_fast.data.formats.layout import SPLIT_NAMES, DataRoot, Layout
from aim_fast.data.formats.listing import UNLABELLED, Clip, Entry, Listing
from aim_fast.data.formats.shard_index import Sample, read_shard
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "MANIFEST", "read"]

LAYOUT = Layout(
    text="train-000000.tar … and val-000000.tar … (or train/*.tar and val/*.tar) with samples <key>.webm or .mp4 and "
    "<key>.cls or <key>.json, and classes.txt",
    source="made from any other data set by aim-fast shard, or by WebDataset's own tools",
    splits=SPLIT_NAMES | {"train": ("train", "training")},
)
MANIFEST = "shards.json"
_PACKED = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz", ".tar.zst", ".tar.lz4")


def read(data: DataRoot) -> Listing:
    """Clips of a split in the order of the shards."""
    samples = _samples(data, data.gaps)
    data.later.append(lambda: _note_other_shards(data))
    classes = _classes(data, samples)
    numbers = {name: number for number, name in enumerate(classes)}
    clips: list[Clip] = []
    for shard, sample in samples:
        label, written = class_name(sample.label), class_number(sample.label)
        if label in ("", str(UNLABELLED)):
            number = UNLABELLED
        else:
            number = numbers.get(label, UNLABELLED - 1) if written is None else written
        if not (0 <= number < len(classes) or (number == UNLABELLED and data.split == "test")):
            what = f"label {sample.label!r}, none of the {len(classes)} classes" if sample.label else "no .cls or .json"
            raise DataError(f"{shard}: sample {sample.key} has {what}; write the shard again")
        clips.append(Entry(sample.path(str(shard)), number, sample.id, f"{shard.name} sample {sample.key}"))
    return Listing(classes, clips)


def _samples(data: DataRoot, gaps: Gaps) -> list[tuple[Path, Sample]]:
    """(shard, sample) of all shards of a split by name; DataError where there is none or one is missing."""
    root, tars = data.path, _shards(data, ".tar")
    if missing := _missing(root, data.split, tars):
        raise DataError(
            f"{root}: {len(missing)} {data.split} shards are missing, the first is {missing[0]}; copy them, or write "
            "them again by the same aim-fast shard command"
        )
    if not tars:
        raise data.refusal(f"no shard of the {data.split} split in {root}")
    samples = []
    for shard in tars:
        found, name = read_shard(shard, root), os.path.relpath(shard, root)
        samples += [(shard, sample) for sample in found.samples]
        gaps.note(f"members of {name} that are no part of a sample", found.beside)
        gaps.note(f"members of {name} that are neither videos nor part of a sample", found.lost, lost=True)
    gaps.lose(f"compressed shards of the {data.split} split (unpack them to .tar)", _names(data, _PACKED))
    return samples


def _shards(data: DataRoot, *endings: str) -> list[Path]:
    """Files of the split by their names, at the root, or where there are none in the split's folder."""

    def taken(path: Path) -> bool:
        return path.name.lower().endswith(endings) and not hidden(path.name)

    words = data.split_names
    here = [path for path in data.path.iterdir() if re.split(r"[^a-z]", path.name.lower())[0] in words and taken(path)]
    folder = data.find_folder()
    return sorted(here or (filter(taken, folder.rglob("*")) if folder else ()))


def _names(data: DataRoot, endings: Sequence[str]) -> list[str]:
    return [os.path.relpath(path, data.path) for path in _shards(data, *endings)]


def _note_other_shards(data: DataRoot) -> None:
    """Shards under the root that are of no split, or in the folder of a split that has others at the root."""
    taken = {path for split in LAYOUT.splits for path in _shards(data.of(split), ".tar", *_PACKED)}
    others = [path for path in data.path.rglob("*") if path.name.lower().endswith((".tar", *_PACKED))]
    data.gaps.note(
        "shards of no split", [os.path.relpath(path, data.path) for path in sorted(others) if path not in taken]
    )


def _missing(root: Path, split: str, tars: list[Path]) -> list[str]:
    """Shards that the manifest of ``aim-fast shard`` names, or else that are missing between two numbers."""
    present = {path.name for path in tars}
    try:
        manifest = json.loads((root / MANIFEST).read_text())["shards"][split]
        return [name for name in manifest if name not in present]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    numbered = [match for path in tars if (match := re.fullmatch(r"(.*?)(\d+)(\.tar)", path.name, re.I))]
    missing = []
    for prefix in sorted({match[1] for match in numbered}):
        digits = {int(match[2]): len(match[2]) for match in numbered if match[1] == prefix}
        for number in range(min(1, min(digits)), max(digits)):
            if number not in digits:
                missing.append(f"{prefix}{number:0{digits[max(digits)]}d}.tar")
    return missing


def _classes(data: DataRoot, samples: list[tuple[Path, Sample]]) -> list[str]:
    if (data.path / "classes.txt").is_file():
        file = data.path / "classes.txt"
        if (data.path / MANIFEST).is_file():  # names as aim-fast shard wrote them, whatever they are
            return [class_name(line) for _, line in numbered_lines(file)]
        found = read_class_file(file, {os.path.basename(sample.key) for _, sample in samples})
        if found.first == 1 and "0" not in {sample.label for _, sample in samples}:
            raise DataError(f"{file}: counts from 1; do the labels of the shards? Write the names without numbers")
        return found.names
    if data.split != "train":
        samples = _samples(data.of("train"), Gaps())
    labels = {class_name(sample.label) for _, sample in samples} - {"", str(UNLABELLED)}
    for shard, sample in samples:
        if has_several(class_name(sample.label), labels):
            raise DataError(
                f"{shard}: sample {sample.key} has several labels: {sample.label[:60]!r}; expected one class, or a "
                "classes.txt that has this name"
            )
    numbers = [number for label in labels if (number := class_number(label)) is not None]
    if numbers and len(numbers) == len(labels):
        names = {class_number(sample.label): class_name(sample.class_name) for _, sample in samples}
        return [names.get(number) or str(number) for number in range(1 + max(numbers))]
    if 2 * len(numbers) > len(labels):
        odd = next(label for label in sorted(labels) if class_number(label) is None)
        shard, sample = next(pair for pair in samples if class_name(pair[1].label) == odd)
        raise DataError(f"{shard}: sample {sample.key} has label {odd!r}, most others class numbers; write one kind")
    return sorted(labels)
