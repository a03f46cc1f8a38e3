"""Exports of CVAT, in its XML of version 1.1: "CVAT for images" with tags on frames, and "CVAT for video" with tracks.

A video's class is the label of the tags on its frames; where a file has no tag, as CVAT leaves them out of "CVAT for
video", that of its tracks. What a file is of:

- a task of a video: its ``<source>``, or where that is left out the task's name;
- a project: each image and track says its ``task_id``, and its ``subset`` is the split;
- a task of pictures in folders: each folder of names such as ``clip_7/000001.jpg`` is a video, a folder of pictures.

A root has one such file or many, of any name. Format: docs.cvat.ai, XML annotation format.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from aim_fast.data.formats.annotation import read_text
from aim_fast.data.formats.extensions import VIDEO_EXTENSIONS
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import Listing
from aim_fast.data.formats.tool_export import Labelled, annotation_files, file_splits, listing_of, split_word
from aim_fast.errors import DataError, abridged

__all__ = ["LAYOUT", "holds_export", "read"]

LAYOUT = Layout(
    text="XML of CVAT 1.1 (for images, with tags; or for video, with tracks), one file or one a task, and the videos "
    "or folders of pictures in the same folder or below it, or such a file",
    source="https://www.cvat.ai: Export annotations of your task or project",
    videos=("images", "videos"),
    depth=8,
    file=True,
)
_UNTAGGED = "videos without a tag (export them as CVAT for images, which has the tags of a video too)"


@dataclass(slots=True)
class _Task:
    """What the head of a file says of a task."""

    name: str = ""
    source: str = ""
    subset: str = ""

    @property
    def video(self) -> str:
        named = posixpath.splitext(self.name)[1].lower() in VIDEO_EXTENSIONS
        return self.source or (self.name if named else "")


@dataclass(slots=True)
class _Content:
    """What a file holds: tasks by their numbers, and labels of tags and of tracks by (number of the task, subset, name
    of the image or "")."""

    export: bool = False
    tasks: dict[str, _Task] = field(default_factory=lambda: defaultdict(_Task))
    images: dict[tuple[str, str, str], set[str]] = field(default_factory=dict)
    tracks: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))


def read(data: DataRoot) -> Listing:
    """Clips of a split in the order of the files, and in each of its tasks."""
    rows: list[Labelled] = []
    notes, others = [], []
    for file, split in file_splits(data, annotation_files(data, ".xml")).items():
        content = _read(file)
        if not content.export:
            others.append(file.name)
            continue
        tagged = any(content.images.values())
        if not tagged and any(content.tracks.values()):
            notes.append(f"{file.name} has no tags: the labels of its tracks are taken")
        rows += _rows(file, split, content, tagged)
    if not rows:
        raise data.refusal(f"no XML of CVAT in {data.path}")
    if others:
        notes.append(f"not taken for an export: {abridged(others, 3)}")
    return listing_of(data, rows, notes)


def holds_export(data: DataRoot) -> bool:
    """Whether a file is there that this format reads."""
    return any(_read(file).export for file in annotation_files(data, ".xml"))


def _rows(file: Path, split: str, content: _Content, tagged: bool) -> Iterator[Labelled]:
    """A row a video of one file. Raises DataError for frames of which it is not told what they are of."""
    labels: dict[tuple[str, bool, str], set[str]] = {}  # by video, whether it is a folder, subset
    nameless = []

    def note(task: str, subset: str, image: str, found: set[str]) -> None:
        known = content.tasks.get(task) or (next(iter(content.tasks.values())) if len(content.tasks) == 1 else _Task())
        folder = posixpath.dirname(image)
        if not known.video and not folder:
            nameless.append(image or known.name or task)
            return
        video = known.video or folder
        labels.setdefault((video, not known.video, subset or known.subset), set()).update(found)

    for (task, subset, image), found in content.images.items():
        note(task, subset, image, found)
    for (task, subset), found in content.tracks.items():
        note(task, subset, "", set() if tagged else found)
    if not labels and not nameless:  # nothing was labelled
        for number, head in content.tasks.items():
            note(number, head.subset, "", set())
    if nameless:
        raise DataError(
            f"{file}: does not say which video {abridged(nameless, 3)} is of; expected <source> in the task, a task "
            "named like its video, or pictures in a folder a video"
        )
    for (video, is_folder, subset), words in labels.items():
        names = (video.replace("\\", "/"),)
        yield Labelled(names, tuple(words), f"{file.name} {video}", split_word(subset) or split, _UNTAGGED, is_folder)


def _read(file: Path) -> _Content:
    """The labels of a file. Raises DataError, with the line, for what is no XML, and for one that defines entities."""
    content, path, text = _Content(), list[str](), list[str]()
    image: list[tuple[str, str, str]] = []
    number = ""

    def opened(tag: str, values: dict[str, str]) -> None:
        path.append(tag)
        text.clear()
        content.export |= path == ["annotations", "version"] or path == ["annotations", "meta"]
        if path[:1] != ["annotations"]:
            return
        if path == ["annotations", "image"]:
            image[:] = [
                (values.get("task_id", ""), values.get("subset", ""), values.get("name", "").replace("\\", "/"))
            ]
            content.images.setdefault(image[0], set())
        elif tag == "tag" and path[:-1] == ["annotations", "image"]:
            content.images[image[0]].add(values.get("label", ""))
        elif path == ["annotations", "track"]:
            content.tracks[values.get("task_id", ""), values.get("subset", "")].add(values.get("label", ""))

    def closed(tag: str) -> None:
        nonlocal number
        if path[:2] == ["annotations", "meta"] and (
            path[-2] in ("task", "job") or path == ["annotations", "meta", tag]
        ):
            value = "".join(text).strip()
            if tag == "id":
                number = value
                content.tasks[number]
            elif tag in ("name", "subset") and path[-2] == "task":
                setattr(content.tasks[number], tag, value)
            elif tag == "source" and value:
                content.tasks[number].source = value
        path.pop()
        text.clear()

    def refuse(*_: object) -> None:
        raise DataError(f"{file}: defines entities, which no export of CVAT does; export it again")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = opened, closed
    parser.CharacterDataHandler = text.append
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(read_text(file), True)
    except expat.ExpatError as error:
        raise DataError(
            f"{file} is not valid XML at line {error.lineno} ({expat.ErrorString(error.code)}); export it again"
        ) from None
    return content
