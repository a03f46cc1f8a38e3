"""Annotation formats: from a data set's own layout on disk to a list of clips with labels.

``read_dataset(name, root, split)`` reads annotations only and never opens a video, so a path in the listing may be
missing; the index finds that out and names it. One module a format, each with ``LAYOUT`` (what it expects, in one
line) and ``read(root, split) -> Listing``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from aim_fast.errors import DataError, UsageError, nearest

__all__ = ["DATASETS", "SPLITS", "UNLABELLED", "Clip", "Listing", "layout", "read_dataset"]

DATASETS = ("ssv2", "folder", "list")
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
        DataError: missing or empty folder, missing or malformed annotations, a label that is no class.
    """
    _known(name, DATASETS, "data set")
    _known(split, SPLITS, "split")
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"data root {root} does not exist; expected {layout(name)}")
    if root.is_dir() and not any(root.iterdir()):
        raise DataError(f"data root {root} is empty; expected {layout(name)}")
    listing = _format(name).read(root, split)
    if not listing.clips:
        raise DataError(f"no {split} clips found under {root}; expected {layout(name)}")
    return listing


def layout(name: str) -> str:
    """The layout that data set ``name`` is expected in, in one line."""
    return _format(name).LAYOUT


def _format(name: str):
    return importlib.import_module(f"{__name__}.{name}")


def _known(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise UsageError(f"unknown {what} {value!r}: {nearest(str(value), known)}")
