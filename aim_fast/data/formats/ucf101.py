"""UCF-101, its three splits.

``classInd.txt`` numbers the classes from 1; ``trainlist0N.txt`` and ``testlist0N.txt`` name the videos of split N as
``<class>/<video>.avi``, the training lists with the class's number behind, which must be that of the folder. The test
list serves as the validation split too: there is no other. Videos may have been converted: the extension in the lists
is not asked for.
"""

from __future__ import annotations

from pathlib import Path

from aim_fast.data.formats.annotation import class_name, class_number, in_order, numbered_lines
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import Listing
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "read"]

_LISTS = "ucfTrainTestlist"
LAYOUT = Layout(
    text=f"classInd.txt, trainlist0{{1,2,3}}.txt and testlist0{{1,2,3}}.txt (also in {_LISTS}/) and videos as "
    "UCF-101/<class>/<video>.avi",
    source="https://www.crcv.ucf.edu/data/UCF101.php",
    splits={"train": ("train",), "validation": ("test",), "test": ("test",)},
    annotation=(_LISTS, f"UCF101TrainTestSplits-RecognitionTask/{_LISTS}", "splits", "annotations", "labels"),
    videos=("UCF-101", "videos"),
    classes=101,
)


def read(data: DataRoot, number: int) -> Listing:
    """Clips of a split of the published split ``number``, in the order of the list."""
    classes = _classes(data.annotation("classInd.txt"))
    numbers = {name: index for index, name in enumerate(classes)}
    file = data.annotation(f"{data.split_names[0]}list0{number}.txt")
    clips, contrary = [], ""
    for line_number, line in numbered_lines(file):
        before, _, last = line.replace("\t", " ").rpartition(" ")
        name = before.rstrip() if before and last.isdecimal() else line
        folder, _, video = name.partition("/")
        if class_name(folder) not in numbers or not video:
            raise DataError(
                f"{file}: line {line_number} is not '<class>/<video>' with a class of classInd.txt: {line!r}"
            )
        label, place = numbers[class_name(folder)], f"{file.name} line {line_number}"
        if name != line and class_number(last) != label + 1 and not contrary:
            contrary = f"{file}: line {line_number} has number {last}, but {folder} is {label + 1} in classInd.txt"
        clips.append(data.clip(name, label, name, folder=folder, place=place))
    if contrary and data.present:  # where no video is there, the root is at fault
        raise DataError(f"{contrary}; download the lists again, all of one release")
    return Listing(classes, clips)


def _classes(file: Path) -> list[str]:
    names = []
    for line_number, line in numbered_lines(file):
        text, _, name = line.partition(" ")
        number = class_number(text)
        if number is None or not name:
            raise DataError(f"{file}: line {line_number} is not 'number class': {line!r}")
        names.append((number, class_name(name)))
    return in_order(file, names, first=1)
