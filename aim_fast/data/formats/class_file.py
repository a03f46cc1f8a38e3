"""A file of class names, a name a line in the order of their numbers, told from other files of that name.

Tools also write the number beside the name ("0 jump", "jump,0"), or one label a clip or boxes into a ``labels.txt``.
Numbers 0, 1, 2 … or 1, 2, 3 …, each once, are the classes' own, whatever the order of the lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from aim_fast.data.formats.annotation import (
    class_name,
    is_comment,
    numbered_lines,
    unquoted,
)
from aim_fast.data.formats.extensions import ANY_EXTENSION
from aim_fast.errors import DataError

__all__ = ["ClassFile", "NoClassFile", "read_class_file"]

_HEADINGS = {
    *("class", "classes", "label", "labels", "name", "names", "classname", "classnames", "labelname", "category"),
    *("categories", "categoryname", "classlabel"),
}
_EXPECTED = (
    "a file of classes has a name a line, each once, in the order of their numbers: rename it where it is another, or "
    "mend it"
)
_VIDEO = re.compile(rf"(?:{ANY_EXTENSION})[\"']?(?:[\s,;|:]|$)", re.IGNORECASE)
_NUMBERS = re.compile(r"[-+\d.e\s,;|]*\d[-+\d.e\s,;|]*")
_YAML = re.compile(r"nc\s*:\s*\d+|\w+\s*:\s*(\[.*\]|\{.*\})")
_CLOCK = re.compile(r"\W?(?P<mark>\d+:)\d\d(?!\d).*")
_SPAN = r"\d+(?:\.\d+)?(?P<mark>\s*[\t,;|]\s*|\s+)\d+(?:\.\d+)?"
_TIMES = (_CLOCK, re.compile(_SPAN + r"(?P=mark)\D.*"), re.compile(r"\D.*?(?P<before>[\s,;|]+)" + _SPAN))
_NUMBER = r"[\"']?(?P<number>\d+)[\"']?"
_FORMS = (
    re.compile(rf"{_NUMBER}(?:\s*[\t,;:|=]\s*|\.\s+|\s+-\s+|\s+)(?P<name>\S.*)"),
    re.compile(rf"(?P<name>.*\S)(?:\s*[\t,;:|=]\s*|\s+){_NUMBER}"),
)


class NoClassFile(DataError):
    """A file that holds something else than class names, such as one label a clip."""


@dataclass(frozen=True, slots=True)
class ClassFile:
    """Class names in order; ``plain``, the lines as they are; ``first``, the number of the first where it is told."""

    file: Path
    names: list[str]
    plain: list[str]
    first: int | None


def read_class_file(file: Path, clips: Container[str] = ()) -> ClassFile:
    """The names in a file; ``clips`` are names of clips, which no class has.

    Raises NoClassFile for a file of something else, DataError for one with a name twice, both with the line.
    """
    lines = []
    for number, line in numbered_lines(file):
        if is_comment(line):
            if line[:1] == "#" and not re.match(r"#+(\s|$)", line):
                raise DataError(f"{file}: line {number} may be a comment or a class: {line[:60]!r}; write '# ' or no #")
            continue
        lines.append((number, class_name(unquoted(line.rstrip(",;")))))
    if lines and re.match(r"[{\[]\s*[\"'{\[]", lines[0][1]):
        raise NoClassFile(f"{file}: line {lines[0][0]} has JSON: {lines[0][1][:60]!r}; {_EXPECTED}")
    if lines and (re.sub(r"[\W_]+", "", lines[0][1]).lower() in _HEADINGS or lines[0][1].endswith(":")):
        lines = lines[1:]
    if not lines:
        return ClassFile(file, [], [], None)
    _refuse_others(file, lines)
    headed = not any(map(str.isdigit, lines[0][1]))
    told = _numbered(_FORMS[0], lines) or (_numbered(_FORMS[0], lines[1:]) if headed else None)
    if told is None:
        _refuse_clips(file, lines, clips)
        told = _numbered(_FORMS[1], lines) or (_numbered(_FORMS[1], lines[1:]) if headed else None)
    if told is not None:
        return ClassFile(file, *told)
    plain = [name for _, name in lines]
    for place, (number, line) in enumerate(lines):
        if line in plain[:place]:
            raise DataError(f"{file}: line {number} has a class twice: {line[:60]!r}; {_EXPECTED}")
    return ClassFile(file, plain, plain, None)


def _refuse_others(file: Path, lines: list[tuple[int, str]]) -> None:
    """NoClassFile where a line is YAML, or every one has a time, or a start and an end."""
    for number, line in lines:
        if _YAML.fullmatch(line):
            raise NoClassFile(f"{file}: line {number} has YAML: {line[:60]!r}; {_EXPECTED}")
        if re.search(r"\d\d:\d\d:\d\d", line):
            raise NoClassFile(f"{file}: line {number} has times: {line[:60]!r}; {_EXPECTED}")
    for form in _TIMES:
        body = lines[len(lines) > 2 and form.fullmatch(lines[0][1]) is None :]  # without a heading
        found = [form.fullmatch(line) for _, line in body]
        # "0 100 m" is the class 100 m, of number 0
        if found and all(match and (match["mark"].strip(" ") or "." in match[0]) for match in found):
            raise NoClassFile(f"{file}: line {body[0][0]} has times: {body[0][1][:60]!r}; {_EXPECTED}")


def _refuse_clips(file: Path, lines: list[tuple[int, str]], clips: Container[str]) -> None:
    """NoClassFile where a line has a video or several numbers, or most begin with the name of a clip."""
    parts = [re.split(r"[\s,;|]+", line) for _, line in lines]
    first = [os.path.splitext(os.path.basename(part[0]))[0] for part in parts if len(part) > 1]
    mostly = 2 * sum(name in clips for name in first) > len(lines)
    for number, line in lines:
        if mostly or _VIDEO.search(line) or (len(line.split()) > 1 and _NUMBERS.fullmatch(line)):
            told = "numbers alone" if _NUMBERS.fullmatch(line) else "the name of a video"
            raise NoClassFile(f"{file}: line {number} has {told}: {line[:60]!r}; {_EXPECTED}")


def _numbered(form: re.Pattern[str], lines: list[tuple[int, str]]) -> tuple[list[str], list[str], int] | None:
    """(names in order, lines, first number) where every line has a number and a name."""
    found = [form.fullmatch(line) for _, line in lines]
    names = sorted((int(match["number"]), class_name(unquoted(match["name"]))) for match in found if match)
    numbers, words = [number for number, _ in names], {name for _, name in names}
    if not names or len(words) < len(lines) or any(_NUMBERS.fullmatch(name) or _VIDEO.search(name) for name in words):
        return None
    if numbers[0] not in (0, 1) or numbers != list(range(numbers[0], numbers[0] + len(lines))):
        return None
    return [name for _, name in names], [line for _, line in lines], numbers[0]
