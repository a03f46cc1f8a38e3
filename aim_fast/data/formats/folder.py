"""A folder of class folders: ``root/train/<class>/<video>`` or ``root/<class>/<video>``.

With split folders (``train``, ``val`` or ``validation``, ``test``) the classes are those of ``train``, sorted by name.
Without them every class is divided here: its files, sorted by name, are permuted by a generator keyed by the class
name alone, the first fifth is for validation and test, the rest for training. Adding a class or changing the seed of
a run moves no file from one side to the other.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from aim_fast.data.formats.annotation import VIDEO_EXTENSIONS
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import Clip, Listing
from aim_fast.errors import DataError

__all__ = ["HELD_OUT", "LAYOUT", "read"]

LAYOUT = Layout(
    text="train/<class>/<video> with val/ (or validation/) and test/, or <class>/<video>", source="your own videos"
)
HELD_OUT = 0.2


def read(data: DataRoot) -> Listing:
    """Clips of a split, by class and then by name."""
    if not any(data.of(split).find_folder() for split in LAYOUT.splits):
        return _divided(data)
    folder = _split_folder(data)
    classes = _classes(data, _split_folder(data.of("train")))
    unknown = sorted(set(_classes(data, folder)) - set(classes))
    if unknown:
        raise DataError(f"{folder} has classes that train has not: {', '.join(unknown[:5])}; move or rename them")
    clips = [
        Clip(os.path.join(folder, name, file), label, f"{name}/{file}")
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for file in _video_names(folder / name)
    ]
    return Listing(classes, clips)


def _split_folder(data: DataRoot) -> Path:
    if folder := data.find_folder():
        return folder
    raise data.refusal(f"{data.path} has no {' or '.join(data.split_names)} folder for the {data.split} split")


def _divided(data: DataRoot) -> Listing:
    classes = _classes(data, data.path)
    clips = []
    for label, name in enumerate(classes):
        files = _video_names(data.path / name)
        order = np.random.Generator(np.random.Philox(key=zlib.crc32(os.fsencode(name)))).permutation(len(files))
        held_out = int(np.ceil(len(files) * HELD_OUT)) if len(files) > 1 else 0
        chosen = order[held_out:] if data.split == "train" else order[:held_out]
        clips += [Clip(str(data.path / name / files[i]), label, f"{name}/{files[i]}") for i in sorted(chosen)]
    return Listing(classes, clips)


def _classes(data: DataRoot, folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    names = sorted(entry.name for entry in folders if _video_names(entry))
    if not names:
        raise data.refusal(f"{folder} has no class folder with videos in it", folder)
    return names


def _video_names(folder: str | os.PathLike[str]) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[0] != "."]  # ._x.mp4 is what macOS packs beside x.mp4
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS)
