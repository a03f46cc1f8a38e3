"""Something-Something v2 in its official layout.

Annotations are ``labels.json`` (template -> "0".."173") with ``train.json``, ``validation.json`` (objects with ``id``
and ``template``) and ``test.json`` (``id`` only), or the same four prefixed ``something-something-v2-`` as newer
downloads name them; at the root, under ``labels/`` or ``annotations/``, or beside the folder of videos given as root.
Videos are ``<id>.webm`` or ``<id>.mp4`` under ``20bn-something-something-v2/``, another subfolder, or the root.

A clip's class is its ``template`` without brackets, looked up in ``labels.json``. The free-text ``label`` of an entry
holds the objects' names and is never used in its place.
"""

from __future__ import annotations

import os
from pathlib import Path

from aim_fast.data.formats import UNLABELLED, Clip, Listing, found
from aim_fast.data.formats.annotation import class_number, read_json, read_lines
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "SOURCE", "read"]

LAYOUT = (
    "Something-Something v2: labels.json, train.json and validation.json (or something-something-v2-*.json, also under "
    "labels/) and videos as 20bn-something-something-v2/<id>.webm or .mp4"
)
SOURCE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset (free account)"
_OFFICIAL_VIDEOS = "20bn-something-something-v2"
_EXTENSIONS = (".webm", ".mp4")


def read(root: Path, split: str) -> Listing:
    """Clips of ``split``; the test split has labels only when ``test-answers.csv`` is present."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected {LAYOUT}")
    classes, labels_file = _classes(root)
    numbers = {name: number for number, name in enumerate(classes)}
    annotation = _find(root, f"{split}.json")
    entries = read_json(annotation)
    if not isinstance(entries, list):
        raise DataError(f"{annotation} holds no list of entries; expected objects with id and template")
    answers = _answers(root, numbers) if split == "test" else {}
    videos = _videos(root, annotation)
    preferred = _preferred_folder(root)
    clips = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or "id" not in entry:
            raise DataError(f"{annotation}: entry {position} is no object with an id; expected {LAYOUT}")
        name = str(entry["id"])
        if split == "test":
            label = answers.get(name, UNLABELLED)
        else:
            label = _label(entry, position, annotation, numbers, labels_file)
        clips.append(Clip(videos.get(name) or str(preferred / f"{name}.webm"), label, name))
    if clips and not any(clip.id in videos for clip in clips):
        raise DataError(
            f"none of the {len(clips)} videos of {annotation.name} is under {root}, the first is "
            f"{clips[0].id}.webm; expected {LAYOUT}; {found(root)}"
        )
    return Listing(classes, clips)


def _label(entry: dict, position: int, file: Path, numbers: dict[str, int], labels_file: Path) -> int:
    template = entry.get("template")
    if not isinstance(template, str):
        raise DataError(f"{file}: entry {position} (id {entry['id']}) has no template; download the annotations again")
    number = numbers.get(_without_brackets(template))
    if number is None:
        raise DataError(
            f"{file}: entry {position} (id {entry['id']}) has template {template!r}, which is not in {labels_file}; "
            "use the labels file of the same release"
        )
    return number


def _without_brackets(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _classes(root: Path) -> tuple[list[str], Path]:
    file = _find(root, "labels.json")
    table = read_json(file)
    if not isinstance(table, dict) or not table:
        raise DataError(f"{file} is no object from template to class number; expected {LAYOUT}")
    try:
        by_number = {int(number): str(template) for template, number in table.items()}
    except (TypeError, ValueError):
        raise DataError(f"{file} has a class number that is no integer; expected values like '0' to '173'") from None
    if sorted(by_number) != list(range(len(table))):
        raise DataError(f"{file}: class numbers are not 0 to {len(table) - 1}, each once; download the labels again")
    return [by_number[number] for number in range(len(table))], file


def _answers(root: Path, numbers: dict[str, int]) -> dict[str, int]:
    file = _found(root, "test-answers.csv")
    if file is None:
        return {}
    answers = {}
    for line_number, line in enumerate(read_lines(file), start=1):
        name, separator, answer = line.partition(";")
        if not line.strip():
            continue
        answer = _without_brackets(answer.strip())
        number = numbers.get(answer, class_number(answer))
        if not separator or number is None:
            raise DataError(f"{file}: line {line_number} is not 'id;label' with a known label: {line!r}")
        if number >= len(numbers):
            raise DataError(f"{file}: line {line_number} has class {answer}, but there are {len(numbers)} classes")
        answers[name.strip()] = number
    return answers


def _find(root: Path, name: str) -> Path:
    file = _found(root, name)
    if file is None:
        raise DataError(
            f"{name} (or something-something-v2-{name}) not found in {root} or its labels/; expected {LAYOUT}; "
            f"{found(root)}"
        )
    return file


def _found(root: Path, name: str) -> Path | None:
    folders = [root, root / "labels", root / "annotations", root.absolute().parent, root.absolute().parent / "labels"]
    candidates = (folder / prefix for folder in folders for prefix in (name, f"something-something-v2-{name}"))
    return next((file for file in candidates if file.is_file()), None)


def _preferred_folder(root: Path) -> Path:
    return root / _OFFICIAL_VIDEOS if (root / _OFFICIAL_VIDEOS).is_dir() else root


def _videos(root: Path, annotation: Path) -> dict[str, str]:
    """Path by id: the official folder first, then the other subfolders by name, then the root; .webm before .mp4."""
    parents = {root} if annotation.parent == root.absolute().parent else {root, annotation.parent}
    subfolders = sorted(
        entry.path for parent in parents for entry in os.scandir(parent) if entry.is_dir() and entry.name[0] != "."
    )
    official = [folder for folder in subfolders if Path(folder).name == _OFFICIAL_VIDEOS]
    paths: dict[str, str] = {}
    for folder in dict.fromkeys([*official, *subfolders, str(root)]):
        with os.scandir(folder) as files:
            here = sorted((file.name for file in files), key=lambda name: not name.endswith(".webm"))
        for file in here:
            stem, extension = os.path.splitext(file)
            if extension.lower() in _EXTENSIONS:
                paths.setdefault(stem, os.path.join(folder, file))
    return paths
