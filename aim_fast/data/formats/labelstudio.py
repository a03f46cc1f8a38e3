"""Exports of Label Studio for video classification: JSON, JSON-MIN, CSV and TSV, told apart by what they hold.

A task is a video (``data``) with what ``Choices`` or ``Taxonomy`` said of it: in JSON the results of its annotations,
of which skipped ones do not count, and where some are marked as ground truth only these; in the others a column between
the data and the annotator. Tasks that several annotators labelled alike are one. A video's address is a file's that was
uploaded (``/data/upload/1/0a1b2c3d-name.mp4``), of local or cloud storage, or any other; its end is looked for below
the root. ``split`` or ``subset`` among the data, or in the file's name, says the split.

Formats: labelstud.io/guide/export, and label_studio_sdk.converter, which writes them.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from aim_fast.data.formats.annotation import read_json, read_lines, read_table
from aim_fast.data.formats.extensions import ANY_EXTENSION
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import Listing
from aim_fast.data.formats.tool_export import UNTOLD, Labelled, annotation_files, file_splits, listing_of, split_word
from aim_fast.errors import DataError, abridged

__all__ = ["LAYOUT", "holds_export", "read"]

LAYOUT = Layout(
    text="an export of Label Studio (JSON, JSON-MIN, CSV or TSV) with its videos in the same folder or below it, or "
    "such a file",
    source="https://labelstud.io: Export in your project",
    depth=8,
    file=True,
)
_ENDINGS = (".json", ".csv", ".tsv")
_OF_ANNOTATIONS = {
    *("annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "history", "id"),
}
_SPLIT_KEYS = ("split", "subset", "_data_split", "_data_subset")
_VIDEO = re.compile(rf"(?:{ANY_EXTENSION})$", re.IGNORECASE)
_EMBEDDED = re.compile(r"<(?:video|source)\b[^>]*?\bsrc\s*=\s*[\"']?([^\"'\s>]+)", re.IGNORECASE)
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")
_PARTS = "videos labelled in boxes or stretches alone"


class _Task(NamedTuple):
    """A video with what one annotator or several said: ``key`` is one a task, ``labels`` by the control that gave them,
    ``lacks`` what it is named as where it has none."""

    key: str
    place: str
    split: str
    data: dict[str, Any]
    labels: dict[str, set[str]]
    lacks: str


def read(data: DataRoot) -> Listing:
    """Clips of a split in the order of the tasks."""
    tasks, others = [], []
    for file, split in file_splits(data, annotation_files(data, *_ENDINGS)).items():
        found = list(_tasks(file, split))
        tasks += found
        others += [] if found else [file.name]
    if not tasks:
        raise data.refusal(f"no export of Label Studio in {data.path}")
    return listing_of(data, _rows(data, tasks), [f"not taken for an export: {abridged(others, 3)}"] if others else ())


def holds_export(data: DataRoot) -> bool:
    """Whether a file is there that this format reads."""
    return any(any(True for _ in _tasks(file)) for file in annotation_files(data, *_ENDINGS))


def _tasks(file: Path, split: str = "") -> Iterator[_Task]:
    """The tasks of an export; none for another file."""
    if file.suffix.lower() != ".json":
        yield from _of_table(file, split)
        return
    content = read_json(file)
    begun = False
    for number, entry in enumerate(content if isinstance(content, list) else [content]):
        entry = entry if isinstance(entry, dict) else {}
        annotations, task = entry.get("annotations", entry.get("completions")), entry.get("task")
        identity = entry.get("id", number)
        key, place = f"{file} {identity}", f"{file.name} task {identity}"
        if isinstance(task, dict) and isinstance(task.get("data"), dict) and isinstance(entry.get("result"), list):
            key = f"task {task.get('id', key)}"  # a file an annotation, as target storage has them
            yield _Task(key, f"{file.name}", split, task["data"], *_of_annotations([entry]))
        elif isinstance(entry.get("data"), dict) and isinstance(annotations, list):
            yield _Task(key, place, split, entry["data"], *_of_annotations(annotations))
        elif {"annotation_id", "annotator", "lead_time"} <= entry.keys():
            yield _Task(key, place, split, *_of_columns(entry, _between(list(entry))))
        elif begun:
            raise DataError(
                f"{file}: entry {number} is no task of Label Studio, as those before it are; export it again"
            )
        else:
            return
        begun = True


def _of_annotations(annotations: list[Any]) -> tuple[dict[str, set[str]], str]:
    """Labels by the names of the controls that gave them; what the task lacks where there is none."""
    kept = [a for a in annotations if isinstance(a, dict) and not (a.get("was_cancelled") or a.get("skipped"))]
    kept = [annotation for annotation in kept if annotation.get("ground_truth")] or kept
    labels: dict[str, set[str]] = defaultdict(set)
    lacks = UNTOLD
    for result in (one for annotation in kept for one in _listed(annotation.get("result"))):
        if isinstance(result, dict) and isinstance(value := result.get("value"), dict):
            words = _words(value)
            lacks = lacks if value.keys() & {"choices", "taxonomy"} else _PARTS
            if words:
                labels[str(result.get("from_name"))].update(words)
    return labels, lacks


def _words(value: Any) -> list[str]:
    """The classes that one result names: of ``choices`` or of ``taxonomy``, whose levels are joined by a slash."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [word for one in value for word in _words(one)]
    if not isinstance(value, dict):
        return []
    found = [str(word) for word in _listed(value.get("choices"))]
    paths = _listed(value.get("taxonomy"))
    return found + ["/".join(map(str, path)) if isinstance(path, list) else str(path) for path in paths]


def _listed(value: Any) -> list[Any]:
    """A list, or one item that stands for it; none for what is not there."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _between(names: list[str]) -> list[str]:
    """Of the columns of JSON-MIN, which has data, id, labels and what is about the annotation in this order, those of
    labels; all others where there is no id."""
    start = names.index("id") + 1 if "id" in names else 0
    return [name for name in names[start : names.index("annotator")] if name not in _OF_ANNOTATIONS]


def _of_columns(entry: dict[str, Any], columns: list[str]) -> tuple[dict[str, Any], dict[str, set[str]], str]:
    labels = {name: set(_words(entry[name])) for name in columns if _video_of(entry[name]) is None}
    rest = {name: value for name, value in entry.items() if name not in _OF_ANNOTATIONS}
    lacking = any(isinstance(entry[name], (list, dict)) and entry[name] for name in columns)
    return rest, {name: words for name, words in labels.items() if words}, _PARTS if lacking else UNTOLD


def _of_table(file: Path, split: str) -> Iterator[_Task]:
    """CSV and TSV have their columns by name, so that labels are what neither data nor annotation is known to be."""
    lines = read_lines(file)
    if not lines or not {"annotation_id", "annotator", "lead_time"} <= set(re.findall(r"\w+", lines[0])):
        return
    names, rows = read_table(file, tuple(_OF_ANNOTATIONS))
    others = [name for name in names if name and name not in (*_OF_ANNOTATIONS, *_SPLIT_KEYS)]
    columns = [name for name in others if not any(_video_of(row.get(name)) for _, row in rows)]
    for line, row in rows:
        entry = {name: _parsed(text) for name, text in row.items()}
        key, place = f"{file} {row.get('id') or line}", f"{file.name} line {line}"
        yield _Task(key, place, split, *_of_columns(entry, [name for name in columns if name in entry]))


def _parsed(text: str) -> Any:
    """A cell: several choices, and boxes, are JSON."""
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    return text


def _rows(data: DataRoot, tasks: list[_Task]) -> list[Labelled]:
    """One row a task; raises DataError where it is not sure which data are the video, or which control is the class."""
    controls = sorted({name for task in tasks for name in task.labels})
    if len(controls) > 1:
        raise DataError(
            f"{data.path}: {abridged(list(map(repr, controls)))} each have words beside a video: which is the class? "
            "Leave one control or column, and call the one of the split split"
        )
    found: dict[tuple[str, tuple[str, ...]], Labelled] = {}  # exports put together may have a number twice
    for task in tasks:
        videos = list(dict.fromkeys(filter(None, map(_video_of, task.data.values()))))
        if len(videos) > 1:
            raise DataError(f"{data.path}: {task.place} has several videos, {abridged(videos, 3)}; expected one a task")
        words = tuple(word for names in task.labels.values() for word in names)
        split = split_word(*(str(task.data[key]) for key in _SPLIT_KEYS if key in task.data)) or task.split
        row = Labelled(_names(videos[0]), words, task.place, split, task.lacks) if videos else _no_video(task)
        before = found.setdefault((task.key, row.files), row)
        if before is not row:  # of another annotator
            found[task.key, row.files] = replace(before, labels=(*before.labels, *row.labels))
    return list(found.values())


def _no_video(task: _Task) -> Labelled:
    return Labelled((), (), task.place, lacks="tasks whose data name no video")


def _video_of(value: Any) -> str | None:
    """The path in a video's address, or None where a value is none of a video."""
    if not isinstance(value, str):
        return None
    embedded = _EMBEDDED.search(value)
    text = (embedded[1] if embedded else value).strip()
    if "://" in text or text.startswith("/data/") or "fileuri=" in text:
        try:
            parts = urlsplit(text)
        except ValueError:
            return None
        query = parse_qs(parts.query.replace("+", "%2B"))  # Label Studio writes a blank as %20
        path = unquote(parts.path)
        if "fileuri" in query:  # of cloud storage that Label Studio asks for the reader
            try:
                packed = query["fileuri"][0]
                path = unquote(urlsplit(base64.b64decode(packed + "=" * (-len(packed) % 4), b"-_").decode()).path)
            except (binascii.Error, ValueError):
                return None
        elif path.endswith("/local-files/") and "d" in query:
            path = query["d"][0]
        text = path
    text = text.replace("\\", "/")
    return text if _VIDEO.search(text) else None


def _names(path: str) -> tuple[str, ...]:
    """A path, and the name that a file had before it was uploaded."""
    folder, name = os.path.split(path)
    uploaded = _UPLOADED.fullmatch(name)
    return (path, uploaded[1]) if uploaded and "/upload/" in f"{folder}/" else (path,)
