"""Part of a split: some of its classes, some of its clips. Draws are a function of the seed and of nothing else.

Few-shot learning takes K clips of each class (K-shot), of all classes (C-way) or of some (5-way); zero-shot learning
trains on some classes and is scored on others; a share of every class asks what less data would have given.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from aim_fast.data.formats.annotation import class_name, decoded
from aim_fast.data.index.rows import Index
from aim_fast.errors import DataError, UsageError, nearest

__all__ = ["choose_classes", "draw_share", "draw_shots", "keep_classes", "keep_listed", "read_lines"]

_CLASSES, _SHOTS = 11, 12  # streams of a seed


def read_lines(path: str | Path, what: str) -> list[str]:
    """The lines of a list file, without blank ones, in Unicode's composed form.

    Raises UsageError where it cannot be read, is empty or repeats.
    """
    try:
        text = decoded(Path(path).read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"{path}: cannot be read as a list of {what}, one a line ({reason})") from None
    lines = [class_name(line) for line in text.split("\n") if line.strip()]
    if not lines:
        raise UsageError(f"{path}: names no {what}: write one a line")
    if len(set(lines)) < len(lines):
        twice = next(line for line in lines if lines.count(line) > 1)
        raise UsageError(f"{path}: names {twice!r} twice: write each of the {what} once")
    return lines


def choose_classes(classes: list[str], wanted: str, seed: int) -> list[str]:
    """Some of ``classes``, in their order: as many as the number ``wanted`` says, drawn by ``seed``, or those that the
    file ``wanted`` names, one a line.

    Raises UsageError for a number that there are not, and for a name that is no class, with the nearest one.
    """
    if wanted.isdecimal():
        count = int(wanted)
        if not 1 <= count <= len(classes):
            raise UsageError(f"{count} classes are asked for, and the data set has {len(classes)}")
        kept = np.random.default_rng([_CLASSES, seed]).permutation(len(classes))[:count]
        return [classes[number] for number in sorted(kept)]
    names = read_lines(wanted, "classes")
    for name in names:
        if name not in classes:  # which are composed as well
            raise UsageError(f"{wanted}: {name!r} is no class of the data set; {nearest(name, classes)}")
    chosen = set(names)
    return [name for name in classes if name in chosen]


def keep_classes(index: Index, names: list[str]) -> Index:
    """The clips of the classes ``names`` alone, labelled by their place in it. Raises DataError where none is left."""
    numbers = {index.classes.index(name): label for label, name in enumerate(names)}
    kept = [(row, [numbers[label] for label in row.labels if label in numbers]) for row in index.rows]
    rows = [row.labelled(labels) for row, labels in kept if labels]
    if not any(row.healthy for row in rows):
        raise DataError(f"{index.root}: its {index.split} split has no clip of the {len(names)} classes asked for")
    return replace(index, classes=list(names), rows=rows)


def draw_shots(index: Index, shots: int, seed: int) -> Index:
    """``shots`` clips of each class, drawn by ``seed`` among those that can be decoded.

    Raises DataError, naming the class, where one has fewer.
    """
    by_class: dict[int, list[int]] = {label: [] for label in range(len(index.classes))}
    for number in index.healthy.tolist():
        by_class[index.rows[number].label].append(number)
    kept: list[int] = []
    for label, numbers in by_class.items():
        if len(numbers) < shots:
            raise DataError(
                f"{index.root}: class {index.classes[label]!r} has {len(numbers)} {index.split} clips, too few for "
                f"{shots} shots: use --shots {len(numbers) or 1}, or leave the class out by --classes"
            )
        draws = np.random.default_rng([_SHOTS, seed, label]).permutation(len(numbers))[:shots]
        kept += [numbers[draw] for draw in draws]
    return replace(index, rows=[index.rows[number] for number in sorted(kept)])


def draw_share(index: Index, share: float, seed: int) -> Index:
    """The index with ``share`` (0 to 1) of each class's clips, rounded, at least one, in the order of the annotations.

    The clips of a class are shuffled by (seed, class) and the first are taken, so that a smaller share of the same seed
    is a part of every larger one.
    """
    if share >= 1:
        return index
    by_class: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(index.rows):
        by_class[row.label].append(number)
    kept: list[int] = []
    for label, numbers in by_class.items():
        order = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), label + 1])).permutation(len(numbers))
        kept += [numbers[place] for place in order[: max(1, round(share * len(numbers)))]]
    return replace(index, rows=[index.rows[number] for number in sorted(kept)])


def keep_listed(index: Index, file: str) -> Index:
    """The clips that a list file names, one a line: by id, by path, or by path below the data root.

    Raises UsageError for a line that is no clip of the split, and DataError, naming the class, for one left without.
    """
    numbers: dict[str, int] = {}
    for number, row in enumerate(index.rows):
        path = os.path.normpath(row.path)
        for key in (row.id, path, os.path.relpath(path, index.root)):
            numbers[class_name(key)] = number
    kept = []
    for line in read_lines(file, "clips"):
        if line not in numbers:
            raise UsageError(
                f"{file}: {line!r} is no {index.split} clip of {index.dataset}; {nearest(line, list(numbers)[:5000])}"
            )
        kept.append(numbers[line])
    rows = [index.rows[number] for number in sorted(kept)]
    present = {label for row in rows if row.healthy for label in row.labels}
    for label, name in enumerate(index.classes):
        if label not in present:
            raise DataError(f"{file}: has no clip of class {name!r}: add one, or leave the class out by --classes")
    return replace(index, rows=rows)
