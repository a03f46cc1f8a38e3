"""Something-Something v2 in its official layout.

Annotations are ``labels.json`` (template -> "0".."173") with ``train.json``, ``validation.json`` (objects with ``id``
and ``template``) and ``test.json`` (``id`` only), or the same four prefixed ``something-something-v2-`` as newer
downloads name them; at the root, under ``labels/`` or ``annotations/``, or beside the folder of videos given as root.
Videos are ``<id>.webm`` or ``<id>.mp4`` under ``20bn-something-something-v2/``, another subfolder, or the root.

A clip's class is its ``template`` without brackets, looked up in ``labels.json``. The free-text ``label`` of an entry
holds the objects' names and is never used in its place.
"""

from __future__ import annotations

from pathlib import Path

from aim_fast.data.formats.annotation import (
    class_name,
    class_number,
    clip_name,
    in_order,
    numbered_lines,
    read_entries,
    read_json,
)
from aim_fast.data.formats.layout import DataRoot, Layout
from aim_fast.data.formats.listing import UNLABELLED, Listing
from aim_fast.errors import DataError

__all__ = ["LAYOUT", "read"]

LAYOUT = Layout(
    text="Something-Something v2: labels.json, train.json and validation.json (or something-something-v2-*.json, also "
    "under labels/) and videos as 20bn-something-something-v2/<id>.webm or .mp4",
    source="https://www.qualcomm.com/developer/software/something-something-v-2-dataset (free account)",
    annotation=("labels", "annotations", "..", "../labels"),
    prefixes=("", "something-something-v2-"),
    videos=("20bn-something-something-v2",),
    depth=1,
    classes=174,
)


def read(data: DataRoot) -> Listing:
    """Clips of a split; the test split has labels only when ``test-answers.csv`` is present."""
    labels_file = data.annotation("labels.json")
    classes = _classes(labels_file)
    numbers = {name: number for number, name in enumerate(classes)}
    file = data.annotation(f"{data.split}.json")
    entries = read_entries(file, "id")
    answers = _answers(data.find_annotation("test-answers.csv"), numbers) if data.split == "test" else {}
    clips = []
    for position, entry in enumerate(entries):
        name, template = clip_name(entry["id"]), entry.get("template")
        if name is None:
            raise DataError(f"{file}: entry {position} has id {entry['id']!r}, which names no video")
        if data.split == "test":
            label = answers.get(name, UNLABELLED)
        elif not isinstance(template, str):
            raise DataError(f"{file}: entry {position} (id {name}) has no template; download the annotations again")
        elif (label := numbers.get(_without_brackets(template), UNLABELLED)) == UNLABELLED:
            raise DataError(
                f"{file}: entry {position} (id {name}) has template {template!r}, which is not in {labels_file}; use "
                "the labels file of the same release"
            )
        clips.append(data.clip(name, label, f"{name}.webm", place=f"{file.name} entry {position}"))
    return Listing(classes, clips)


def _without_brackets(template: str) -> str:
    return class_name(template.replace("[", "").replace("]", ""))


def _classes(file: Path) -> list[str]:
    table = read_json(file)
    if not isinstance(table, dict) or not table:
        raise DataError(f"{file} is no object from template to class number; is it the labels file?")
    numbered = [(class_number(number), class_name(template)) for template, number in table.items()]
    if None in (number for number, _ in numbered):
        raise DataError(f"{file} has a class number that is no integer; expected values like '0' to '173'")
    return in_order(file, [(number, name) for number, name in numbered if number is not None])


def _answers(file: Path | None, numbers: dict[str, int]) -> dict[str, int]:
    answers: dict[str, int] = {}
    for line_number, line in numbered_lines(file) if file else ():
        name, separator, answer = line.partition(";")
        answer = _without_brackets(answer.strip())
        number = numbers.get(answer, class_number(answer))
        if not separator or number is None:
            raise DataError(f"{file}: line {line_number} is not 'id;label' with a known label: {line!r}")
        if number >= len(numbers):
            raise DataError(f"{file}: line {line_number} has class {answer}, but there are {len(numbers)} classes")
        if answers.setdefault(name.strip(), number) != number:
            raise DataError(f"{file}: line {line_number} has another answer for {name.strip()} than a line before it")
    return answers
