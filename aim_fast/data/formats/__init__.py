"""Annotation formats: from a data set's own layout on disk to a list of clips with labels.

``read_dataset(name, root, split)`` reads annotations only and never opens a video, so a path in the listing may be
missing; the index finds that out and names it. One module a format, each with ``LAYOUT`` (what it expects, in one
line), ``SOURCE`` (where to get it) and ``read(root, split) -> Listing``. Data sets that share a format, such as the
three releases of Kinetics or the three splits of UCF-101, are one module read with other options.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from aim_fast.errors import DataError, UsageError, nearest

__all__ = [
    "DATASETS",
    "SPLITS",
    "UNLABELLED",
    "Clip",
    "Listing",
    "found",
    "layout",
    "named",
    "read_dataset",
    "source",
]

_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "kinetics400": ("kinetics", {"num_classes": 400}),
    "kinetics600": ("kinetics", {"num_classes": 600}),
    "kinetics700": ("kinetics", {"num_classes": 700}),
    "ssv2": ("ssv2", {}),
    "ssv1": ("ssv1", {}),
    "diving48": ("diving48", {}),
    "jester": ("jester", {}),
    "ucf101": ("ucf101", {"number": 1}),
    "ucf101-split2": ("ucf101", {"number": 2}),
    "ucf101-split3": ("ucf101", {"number": 3}),
    "hmdb51": ("hmdb51", {"number": 1}),
    "hmdb51-split2": ("hmdb51", {"number": 2}),
    "hmdb51-split3": ("hmdb51", {"number": 3}),
    "folder": ("folder", {}),
    "list": ("list", {}),
    "webdataset": ("webdataset", {}),
}
DATASETS = tuple(_FORMATS)
SPLITS = ("train", "validation", "test")
UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Clip:
    """One video of a split: where it is, its class (``UNLABELLED`` where the split has no answers) and its name."""

    path: str
    label: int
    id: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The clips of one split, in the order of the annotations, and the class names by class id."""

    classes: list[str]
    clips: list[Clip]


def read_dataset(name: str, root: str | Path, split: str) -> Listing:
    """Clips and classes of ``split`` ("train", "validation" or "test") of data set ``name`` under ``root``.

    Raises:
        UsageError: unknown data set or split; the message gives the nearest known name.
        DataError: missing or empty folder, missing or malformed annotations, a label that is no class. The message
            says what was expected and what was found.
    """
    _known(name, DATASETS, "data set")
    _known(split, SPLITS, "split")
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"data root {root} does not exist; expected {layout(name)}")
    if root.is_dir() and not any(root.iterdir()):
        raise DataError(f"data root {root} is empty; expected {layout(name)}")
    module, options = _format(name)
    listing = module.read(root, split, **options)
    if not listing.clips:
        raise DataError(f"no {split} clips found under {root}; expected {layout(name)}; {found(root)}")
    odd = next((clip for clip in listing.clips if not _nameable(clip)), None)
    if odd is not None:
        raise DataError(
            f"{root}: the {split} annotations name a clip {odd.id!r}, which no file can be named; download or write "
            "them again"
        )
    return listing


def layout(name: str) -> str:
    """The layout that data set ``name`` is expected in, in one line."""
    return _format(name)[0].LAYOUT


def source(name: str) -> str:
    """Where data set ``name`` can be had, in one line."""
    return _format(name)[0].SOURCE


def found(folder: Path) -> str:
    """What is in a folder, for the end of a message about what is not: "found: a/, b.csv"."""
    if not folder.is_dir():
        return f"{folder} is no folder"
    entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda entry: entry.name)
    return f"found: {named([entry.name + '/' * entry.is_dir() for entry in entries], 6) or 'nothing'}"


def named(names: list[str], most: int = 5) -> str:
    """The first of some names, for a message: "a, b and 3 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _nameable(clip: Clip) -> bool:
    """Whether a file can have this name: without zero bytes and half characters, which JSON can write."""
    try:
        return b"\0" not in os.fsencode(clip.id) + os.fsencode(clip.path)
    except UnicodeEncodeError:
        return False


def _format(name: str) -> tuple[ModuleType, dict[str, Any]]:
    module, options = _FORMATS[name]
    return importlib.import_module(f"{__name__}.{module}"), options


def _known(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise UsageError(f"unknown {what} {value!r}: {nearest(str(value), known)}")
