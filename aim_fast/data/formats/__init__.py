"""Annotation formats: from a data set's own layout on disk to a list of clips with labels.

In: the name of a data set, its root and a split. Out: a :class:`~aim_fast.data.formats.listing.Listing`, by annotations
alone: no video is opened, so a path in it may be missing; the index finds that out and names it.

A format is a module of this folder with ``LAYOUT``, a :class:`~aim_fast.data.formats.layout.Layout`, and
``read(data) -> Listing``, which is given a :class:`~aim_fast.data.formats.layout.DataRoot`; and a line in the table
below. Data sets that share a format, such as the three releases of Kinetics or the three splits of UCF-101, are one
module read with other options.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from aim_fast.data.formats.layout import SPLIT_NAMES, DataRoot, Layout
from aim_fast.data.formats.listing import UNLABELLED, Clip, Listing, each_once
from aim_fast.data.storage.address import is_address, shown
from aim_fast.errors import DataError, UsageError, nearest

__all__ = [
    "DATASETS",
    "FORMATS",
    "SPLITS",
    "UNLABELLED",
    "Clip",
    "Listing",
    "chosen_dataset",
    "dataset_layout",
    "read_dataset",
]

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
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
    "charades": ("charades", {}),
    "webdataset": ("webdataset", {}),
    "labelstudio": ("labelstudio", {}),
    "cvat": ("cvat", {}),
    "fiftyone": ("fiftyone", {}),
}
DATASETS = tuple(FORMATS)
SPLITS = tuple(SPLIT_NAMES)


def chosen_dataset(dataset: str | None, root: str | Path | None, cache_gib: float | None = None) -> tuple[str, Path]:
    """A data set's name and its root; of an address the folder that stands for it, of which ``cache_gib`` are kept.

    Raises UsageError where one of them was not given, and for an address of another format than shards.
    """
    if not dataset:
        raise UsageError("no data set: give --dataset NAME (aim-fast datasets lists them) and --data-root DIR")
    if not root:
        raise UsageError(f"no folder for data set {dataset}: give --data-root DIR")
    if is_address(root):
        if dataset != "webdataset":
            raise UsageError(f"{shown(str(root))}: {dataset} is read from a disk; --dataset webdataset reads addresses")
        from aim_fast.data.storage.cache import limit_tars
        from aim_fast.data.storage.mirror import mirror

        if cache_gib is not None:
            limit_tars(cache_gib)
        return dataset, mirror(str(root))
    return dataset, Path(root).expanduser()


def read_dataset(name: str, root: str | Path, split: str, multi_label: bool = False) -> Listing:
    """Clips and classes of ``split`` ("train", "validation" or "test") of data set ``name`` under ``root``.

    With ``multi_label`` a clip may have several labels, or none.

    Raises:
        UsageError: unknown data set or split; the message gives the nearest known name. ``multi_label`` for a data set
            of one label a clip, or without it one of several.
        DataError: missing or empty folder, missing or malformed annotations, a label that is no class, a video under
            two labels, no video at all. The message says what was expected and what was found.
    """
    module, options = _format(name)
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}: {nearest(str(split), SPLITS)}")
    if module.LAYOUT.labels == ("one" if multi_label else "several"):
        say = "leave --multi-label out, or take --dataset list or folder" if multi_label else "give --multi-label"
        raise UsageError(f"data set {name} has {module.LAYOUT.labels} label{'s' * (not multi_label)} a clip: {say}")
    data = DataRoot(Path(root).expanduser(), split, module.LAYOUT, multi_label)
    listing = module.read(data, **options)
    if not listing.clips:
        raise data.refusal(f"no {split} clips found under {data.path}")
    odd = next((clip for clip in listing.clips if not _nameable(clip)), None)
    if odd is not None:
        raise DataError(
            f"{data.path}: the {split} annotations name a clip {odd.id!r}, which no file can be named; download or "
            "write them again"
        )
    if data.asked and not data.present:
        first = os.path.relpath(listing.clips[0].path, data.path)
        raise data.refusal(
            f"none of the {data.asked} videos of the {split} annotations is under {data.path}, the first is {first}"
        )
    published = options.get("num_classes", module.LAYOUT.classes)
    listing = each_once(listing, f"{data.path}: {split}", multi_label)
    if multi_label and split == "train" and not any(clip.others for clip in listing.clips):
        note = "multi_label: no training clip has several labels; is it what parts them, which is , ; or |?"
        listing = replace(listing, notes=(*listing.notes, note))
    return replace(
        listing,
        multi_label=multi_label,
        gaps=lambda: data.found_gaps(name, listing.classes, published, lambda other: module.read(other, **options)),
    )


def dataset_layout(name: str) -> Layout:
    """How data set ``name`` is expected to lie on disk, and where it can be had."""
    return _format(name)[0].LAYOUT


def _nameable(clip: Clip) -> bool:
    """Whether a file can have this name: without zero bytes and half characters, which JSON can write."""
    text = clip.id + clip.path
    try:
        return "\0" not in text and (text.isascii() or bool(os.fsencode(text)))
    except UnicodeEncodeError:
        return False


def _format(name: str) -> tuple[ModuleType, dict[str, Any]]:
    if name not in FORMATS:
        raise UsageError(f"unknown data set {name!r}: {nearest(str(name), DATASETS)}")
    module, options = FORMATS[name]
    return importlib.import_module(f"{__name__}.{module}"), options
