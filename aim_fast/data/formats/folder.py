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

from aim_fast.data.formats.annotation import VIDEO_EXTENSIONS, composed
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
    folder, train = _split_folder(data), _split_folder(data.of("train"))
    here = _classes(data, folder)
    classes = here if folder == train else _classes(data, train)
    unknown = sorted(set(here) - set(classes))
    if unknown:
        raise DataError(f"{folder} has classes that train has not: {', '.join(unknown[:5])}; move or rename them")
    clips = [
        Clip(os.path.join(folder, file), label, file)
        for label, name in enumerate(classes)
        for file in here.get(name, ())
    ]
    return Listing(list(classes), clips)


def _split_folder(data: DataRoot) -> Path:
    if folder := data.find_folder():
        return folder
    raise data.refusal(f"{data.path} has no {' or '.join(data.split_names)} folder for the {data.split} split")


def _divided(data: DataRoot) -> Listing:
    classes = _classes(data, data.path)
    clips = []
    for label, (name, files) in enumerate(classes.items()):
        order = np.random.Generator(np.random.Philox(key=zlib.crc32(os.fsencode(name)))).permutation(len(files))
        held_out = int(np.ceil(len(files) * HELD_OUT)) if len(files) > 1 else 0
        chosen = order[held_out:] if data.split == "train" else order[:held_out]
        clips += [Clip(str(data.path / files[i]), label, files[i]) for i in sorted(chosen)]
    return Listing(list(classes), clips)


def _classes(data: DataRoot, folder: Path) -> dict[str, list[str]]:
    """Names of classes in order, and their videos in order of their paths below ``folder``.

    Folders whose names differ in their Unicode form alone are one class.
    """
    with os.scandir(folder) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    found: dict[str, list[str]] = {}
    for name in folders:
        if videos := [f"{name}/{file}" for file in _video_names(folder / name)]:
            found.setdefault(composed(name), []).extend(videos)
    if not found:
        raise data.refusal(f"{folder} has no class folder with videos in it", folder)
    return {name: sorted(found[name], key=composed) for name in sorted(found)}


def _video_names(folder: str | os.PathLike[str]) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[0] != "."]  # ._x.mp4 is what macOS packs beside x.mp4
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS)
