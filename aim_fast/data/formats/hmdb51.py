"""HMDB-51, its three splits.

``<class>_test_split<N>.txt``, a file a class, has lines ``<video>.avi flag``: 1 for training, 2 for testing, 0 for
neither. Classes are sorted by name. The test half serves as the validation split too: there is no other. Videos may
have been converted: the extension in the lists is not asked for.
"""

from __future__ import annotations

from aim_fast.data.formats.annotation import class_name, numbered_lines
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import Listing
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "read"]

LAYOUT = Layout(
    text="<class>_test_split{1,2,3}.txt (also in testTrainMulti_7030_splits/ or splits/) and videos as "
    "<class>/<video>.avi (also in hmdb51_org/ or videos/), both unpacked from their .rar files",
    source="https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/",
    annotation=("testTrainMulti_7030_splits", "test_train_splits", "splits", "annotations", "labels"),
    videos=("hmdb51_org", "videos"),
    classes=51,
)


def read(data: DataRoot, number: int) -> Listing:
    """Clips of a split of the published split ``number``, by class and then in the order of its list."""
    tail = f"_test_split{number}.txt"
    files = next((files for place in data.places if (files := sorted(place.glob(f"*{tail}")))), [])
    if not files:
        packed = " (unpack the .rar files first)" if any(data.path.glob("*.rar")) else ""
        raise data.refusal(f"no *{tail} under {data.path}{packed}")
    classes = [file.name.removesuffix(tail) for file in files]
    flag = "1" if data.split == "train" else "2"
    clips = []
    for label, (name, file) in enumerate(zip(classes, files)):
        for line_number, line in numbered_lines(file):
            video, _, mark = line.rpartition(" ")
            if mark not in ("0", "1", "2") or not video:
                raise DataError(f"{file}: line {line_number} is not '<video> flag' with a flag of 0, 1 or 2: {line!r}")
            path = f"{name}/{video.strip()}"
            if mark == flag:
                place = f"{file.name} line {line_number}"
                clips.append(data.clip(path, label, path, folder=name, place=place))
            else:
                data.find(path, name)
    return Listing([class_name(name) for name in classes], clips)
