"""UCF-101, its three splits.

``classInd.txt`` numbers the classes from 1; ``trainlist0N.txt`` and ``testlist0N.txt`` name the videos of split N as
``<class>/<video>.avi``, the training lists with the class's number behind. The test list serves as the validation split
too: there is no other. Videos may have been converted: the extension in the lists is not asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

from aim_fast.data.formats import Clip, Listing, found
from aim_fast.data.formats.annotation import class_number, find_annotation, read_lines
from aim_fast.data.formats.videos import Videos
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "SOURCE", "read"]

LAYOUT = (
    "classInd.txt, trainlist0{1,2,3}.txt and testlist0{1,2,3}.txt (also in ucfTrainTestlist/) and videos as "
    "UCF-101/<class>/<video>.avi"
)
SOURCE = "https://www.crcv.ucf.edu/data/UCF101.php"
_LIST_FOLDERS = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "splits")


def read(root: Path, split: str, number: int) -> Listing:
    """Clips of ``split`` of the published split ``number``, in the order of the list."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected {LAYOUT}")
    classes = _classes(_file(root, "classInd.txt"))
    numbers = {name: index for index, name in enumerate(classes)}
    file = _file(root, f"{'train' if split == 'train' else 'test'}list0{number}.txt")
    videos = Videos(root)
    place = videos.place(("UCF-101", "videos"))
    clips, present = [], 0
    for line_number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        before, _, last = line.strip().rpartition(" ")
        name = before if before and last.isdecimal() else line.strip()
        class_name, _, video = name.partition("/")
        if class_name not in numbers or not video:
            raise DataError(
                f"{file}: line {line_number} is not '<class>/<video>' with a class of classInd.txt: {line!r}"
            )
        path = videos.find(os.path.splitext(video)[0], class_name)
        present += path is not None
        clips.append(Clip(path or str(place / name), numbers[class_name], name))
    if clips and not present:
        raise DataError(
            f"none of the {len(clips)} videos of {file} is under {root}, the first is {clips[0].id}; expected "
            f"{LAYOUT}; {found(root)}"
        )
    return Listing(classes, clips)


def _file(root: Path, name: str) -> Path:
    file = find_annotation(root, [name], _LIST_FOLDERS)
    if file is None:
        raise DataError(f"{name} not found in {root} or its ucfTrainTestlist/; expected {LAYOUT}; {found(root)}")
    return file


def _classes(file: Path) -> list[str]:
    by_number = {}
    for line_number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        text, _, name = line.strip().partition(" ")
        number = class_number(text)
        if number is None or not name:
            raise DataError(f"{file}: line {line_number} is not 'number class': {line!r}")
        by_number[number] = name.strip()
    if sorted(by_number) != list(range(1, len(by_number) + 1)):
        raise DataError(f"{file}: class numbers are not 1 to {len(by_number)}, each once; download the lists again")
    return [by_number[number] for number in sorted(by_number)]
