"""HMDB-51, its three splits.

``<class>_test_split<N>.txt``, a file a class, has lines ``<video>.avi flag``: 1 for training, 2 for testing, 0 for
neither. Classes are sorted by name. The test half serves as the validation split too: there is no other. Videos may
have been converted: the extension in the lists is not asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

from aim_fast.data.formats import Clip, Listing, found
from aim_fast.data.formats.annotation import read_lines
from aim_fast.data.formats.videos import Videos
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "SOURCE", "read"]

LAYOUT = (
    "<class>_test_split{1,2,3}.txt (also in testTrainMulti_7030_splits/ or splits/) and videos as <class>/<video>.avi "
    "(also in hmdb51_org/ or videos/), both unpacked from their .rar files"
)
SOURCE = "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/"
_LIST_FOLDERS = (".", "testTrainMulti_7030_splits", "test_train_splits", "splits", "annotations", "labels")


def read(root: Path, split: str, number: int) -> Listing:
    """Clips of ``split`` of the published split ``number``, by class and then in the order of its list."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected {LAYOUT}")
    tail = f"_test_split{number}.txt"
    files = next((files for name in _LIST_FOLDERS if (files := sorted((root / name).glob(f"*{tail}")))), [])
    if not files:
        packed = " (unpack the .rar files first)" if any(root.glob("*.rar")) else ""
        raise DataError(f"no *{tail} under {root}{packed}; expected {LAYOUT}; {found(root)}")
    classes = [file.name.removesuffix(tail) for file in files]
    flag = "1" if split == "train" else "2"
    videos = Videos(root)
    clips, present = [], 0
    for label, (name, file) in enumerate(zip(classes, files)):
        place = videos.place(("hmdb51_org", "videos"), name)
        for line_number, line in enumerate(read_lines(file), start=1):
            if not line.strip():
                continue
            video, _, mark = line.strip().rpartition(" ")
            if mark not in ("0", "1", "2") or not video:
                raise DataError(f"{file}: line {line_number} is not '<video> flag' with a flag of 0, 1 or 2: {line!r}")
            if mark != flag:
                continue
            path = videos.find(os.path.splitext(video.strip())[0], name)
            present += path is not None
            clips.append(Clip(path or str(place / video.strip()), label, f"{name}/{video.strip()}"))
    if clips and not present:
        raise DataError(
            f"none of the {len(clips)} videos of {files[0].parent} is under {root}, the first is {clips[0].id}; "
            f"expected {LAYOUT}; {found(root)}"
        )
    return Listing(classes, clips)
