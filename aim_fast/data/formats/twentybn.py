"""Something-Something v1 and Jester, the two that TwentyBN released as folders of pictures.

``<prefix>-labels.csv`` has a class a line, numbered by its line; ``<prefix>-train.csv`` and ``-validation.csv`` have
lines ``id;label``, ``-test.csv`` an id. Later downloads of Jester name them ``Train.csv`` and so on, with a heading
``video_id,label,…``. A video is the folder ``<id>/`` of ``00001.jpg``, ``00002.jpg`` …, or ``<id>.webm`` or ``.mp4``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from aim_fast.data.formats import UNLABELLED, Clip, Listing, found
from aim_fast.data.formats.annotation import VIDEO_EXTENSIONS, find_annotation, read_lines, read_table
from aim_fast.errors import DataError

__all__ = ["PictureFolders"]


@dataclass(frozen=True, slots=True)
class PictureFolders:
    """One such data set: how its annotation files begin, and the folder of its videos."""

    prefix: str
    videos: str

    @property
    def layout(self) -> str:
        return (
            f"{self.prefix}-labels.csv, {self.prefix}-train.csv and {self.prefix}-validation.csv (lines id;label, or "
            f"Train.csv with a heading; also in annotations/) and {self.videos}/<id>/00001.jpg … or <id>.webm or .mp4"
        )

    def read(self, root: Path, split: str) -> Listing:
        """Clips of ``split`` in the order of its CSV file; the test split has the labels that its file has."""
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; expected {self.layout}")
        labels_file = _file(root, self, "labels")
        classes = [line.strip() for line in read_lines(labels_file) if line.strip()]
        numbers = {label: number for number, label in enumerate(classes)}
        if len(numbers) < len(classes):
            raise DataError(f"{labels_file} has a class twice; expected one a line; download the labels again")
        file = _file(root, self, split)
        folder, videos = _videos(root, self)
        clips = []
        for line, identity, label in _entries(file):
            if label is not None and label not in numbers:
                raise DataError(f"{file}: line {line} has label {label!r}, which is not in {labels_file}")
            if label is None and split != "test":
                raise DataError(f"{file}: line {line} is not 'id;label'; expected {self.layout}")
            number = UNLABELLED if label is None else numbers[label]
            clips.append(Clip(videos.get(identity) or str(folder / identity), number, identity))
        if clips and not any(clip.id in videos for clip in clips):
            raise DataError(
                f"none of the {len(clips)} videos of {file} is in {folder}, the first is {clips[0].id}/; expected "
                f"{self.layout}; {found(root)}"
            )
        return Listing(classes, clips)


def _file(root: Path, data_set: PictureFolders, what: str) -> Path:
    names = [f"{data_set.prefix}-{what}.csv", f"{what}.csv", f"{what.capitalize()}.csv"]
    file = find_annotation(root, names)
    if file is None:
        raise DataError(f"{names[0]} not found in {root}; expected {data_set.layout}; {found(root)}")
    return file


def _entries(file: Path) -> list[tuple[int, str, str | None]]:
    """(line number, id, label or None) of every line that is not blank."""
    lines = read_lines(file)
    if lines and lines[0].lower().startswith("video_id"):
        headings, rows = read_table(file, ";" if ";" in lines[0] else ",")
        if headings[0] != "video_id":
            raise DataError(f"{file}: the heading begins with {headings[0]!r}, not video_id; download it again")
        return [(number, row.get("video_id", ""), row.get("label") or None) for number, row in rows]
    entries = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            identity, _, label = line.strip().partition(";" if ";" in line else ",")
            entries.append((number, identity.strip(), label.strip() or None))
    return entries


def _videos(root: Path, data_set: PictureFolders) -> tuple[Path, dict[str, str]]:
    """The folder of the videos, and paths by id: folders of pictures before files."""
    names = (data_set.videos, "videos", "frames", "rawframes")
    folder = next((root / name for name in names if (root / name).is_dir()), root)
    videos: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: (not entry.is_dir(), entry.name)):
            stem, extension = os.path.splitext(entry.name)
            if extension.lower() in VIDEO_EXTENSIONS:
                videos.setdefault(stem, entry.path)
            elif entry.is_dir():
                videos.setdefault(entry.name, entry.path)
    return folder, videos
