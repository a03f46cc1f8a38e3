"""Annotation files read with errors that say which file, which line, and what to do.

Text is UTF-8 or UTF-16, with or without a byte order mark, and ends its lines in any way. Class names are compared in
Unicode's composed form (NFC), whatever form a file or a disk has them in.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
import re
import unicodedata
from collections.abc import Container, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from aim_fast.errors import DataError

__all__ = [
    "MOST_CLASSES",
    "cells_of",
    "class_name",
    "class_number",
    "clip_name",
    "composed",
    "decoded",
    "files_read",
    "has_several",
    "in_order",
    "is_comment",
    "numbered_lines",
    "read_entries",
    "read_json",
    "read_lines",
    "read_table",
    "read_text",
    "unquoted",
]

_MARKS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
MOST_CLASSES = 1_000_000  # a larger "class number" is a date, an id or a size: another column

_READ: ContextVar[list[Path] | None] = ContextVar("annotation files read", default=None)


@contextlib.contextmanager
def files_read() -> Iterator[list[Path]]:
    """Collects the annotation files that are read within the block, in the order of reading."""
    files: list[Path] = []
    token = _READ.set(files)
    try:
        yield files
    finally:
        _READ.reset(token)


def read_json(file: Path) -> Any:
    """The parsed file; DataError with line and column where it is not valid JSON."""
    try:
        return json.loads(read_text(file), object_pairs_hook=lambda pairs: _object(file, pairs))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file} is not valid JSON at line {error.lineno} column {error.colno} ({error.msg}); "
            "download or write it again"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise DataError(f"{file} cannot be read as JSON ({error}); download or write it again") from None


def read_entries(file: Path, key: str) -> list[dict[str, Any]]:
    """The objects of a JSON list that all have ``key``; DataError for any other file."""
    entries = read_json(file)
    a_key = f"{'an' if key[0] in 'aeiou' else 'a'} {key}"
    if not isinstance(entries, list):
        raise DataError(f"{file} holds no list of entries; expected objects with {a_key}")
    odd = next((place for place, entry in enumerate(entries) if not (isinstance(entry, dict) and key in entry)), None)
    if odd is not None:
        raise DataError(f"{file}: entry {odd} is no object with {a_key}; is it the annotation file of this data set?")
    return entries


def read_lines(file: Path) -> list[str]:
    """The file's lines without line ends; blank lines stay, so that positions are line numbers."""
    lines = read_text(file).split("\n")  # str.splitlines() would also cut at marks that names may hold, such as U+2028
    return lines if lines[-1] else lines[:-1]


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(line number, line without the blanks at its ends) of every line that is not blank."""
    return ((number, line.strip()) for number, line in enumerate(read_lines(file), start=1) if line.strip())


def read_table(file: Path, headings: Sequence[str] = ()) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The headings of a CSV file, in lower case, and (line number, row) of every line under them.

    Comma, semicolon, tab or bar between: that which gives the first line the most of ``headings``. Comments, and lines
    that repeat the headings, are passed over. Raises DataError for a row that has more cells than there are headings.
    """
    lines = [
        (number, line)
        for number, line in enumerate(read_lines(file), start=1)
        if line.strip() and not is_comment(line.strip())
    ]
    first = lines[0][1] if lines else ""
    delimiter = max(",;\t|", key=lambda mark: len(set(headings) & set(cells_of(first.lower(), mark))))
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    names, rows, done = cells_of(first.lower(), delimiter), [], 0
    try:
        for place, cells in enumerate(reader):
            number = lines[place][0]
            if reader.line_num > place + 1:
                raise csv.Error("it goes on in the next line")
            done = place + 1
            if any(cell.strip() for cell in cells[len(names) :]):
                raise DataError(
                    f"{file}: line {number} has {len(cells)} cells, the heading {len(names)}; put quotation marks "
                    f"around what holds a {_MARKS[delimiter]}"
                )
            if [cell.strip().lower() for cell in cells] != names:
                rows.append((number, {name: cell.strip() for name, cell in zip(names, cells) if name}))
    except csv.Error as error:
        number = lines[min(done, len(lines) - 1)][0]
        raise DataError(f"{file}: line {number} is not CSV ({error}); is a quotation mark left open in it?") from None
    return names, rows


def unquoted(text: str) -> str:
    """A field without the quotation marks around it, and without blanks at its ends."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1].replace(text[0] * 2, text[0]).strip()
    return text


def is_comment(line: str) -> bool:
    """Whether a line without blanks at its ends begins with ``#`` or ``//``."""
    return line.startswith(("#", "//"))


def in_order(file: Path, names: list[tuple[int, str]], first: int = 0) -> list[str]:
    """Class names by their numbers, which must be ``first``, ``first`` + 1 and so on, each once."""
    last = first + len(names) - 1
    if sorted(number for number, _ in names) != list(range(first, last + 1)):
        raise DataError(f"{file}: class numbers are not {first} to {last}, each once; download the file again")
    return [name for _, name in sorted(names)]


def composed(name: str) -> str:
    """A name in the form in which names are compared (NFC): accents are part of their letters."""
    return unicodedata.normalize("NFC", name)


def class_name(text: str) -> str:
    """:func:`composed`, without blanks at its ends."""
    return composed(text.strip())


def class_number(value: Any) -> int | None:
    """The number that a text or a JSON value is, ``3.0`` for 3; None for all that is no whole number of a class."""
    text = str(value) if type(value) in (int, float, str) else ""
    text = re.sub(r"\.0*$", "", text) if "." in text and text[0].isdecimal() else text
    number = int(text) if text.isdecimal() and len(text) < 10 else MOST_CLASSES
    return number if number < MOST_CLASSES else None


def has_several(label: str, known: Container[str], blanks: bool = True) -> bool:
    """Whether a label is several, joined: numbers, or names that are each ``known`` as the label of another clip.

    Names may hold a hyphen, and where ``blanks`` is False, as within quotation marks, blanks.
    """
    if label[:1] in ("[", "{", "(") and label[-1] in ")}]" and re.search(r"\d", label):
        return True
    for mark in ",;|+/&-" + " " * blanks:
        parts = [class_name(part) for part in label.split(mark)]
        if len(parts) > 1 and (
            all(part.isdecimal() for part in parts) or (mark != "-" and all(part in known for part in parts))
        ):
            return True
    return False


def clip_name(value: Any) -> str | None:
    """The name of a clip that JSON gives as a text or a number; None for what names none."""
    if type(value) is float and value.is_integer():  # as pandas writes a column of numbers that lacks one
        value = int(value)
    return (str(value).strip() or None) if type(value) in (int, str) else None


def decoded(data: bytes) -> str:
    """The text of a file, its lines ending in ``\\n``; UnicodeDecodeError where it is neither UTF-8 nor UTF-16."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16")
    elif len(data) > 1 and len(data) % 2 == 0 and not any(data[1::2]) and all(data[::2]):
        text = data.decode("utf-16-le")
    elif len(data) > 1 and len(data) % 2 == 0 and not any(data[::2]) and all(data[1::2]):
        text = data.decode("utf-16-be")
    else:
        text = data.decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _object(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{file}: has {twice!r} twice in one object; leave one of them")
    return found


def cells_of(line: str, delimiter: str) -> list[str]:
    """The cells of a line of CSV, without blanks at their ends; none where a quotation mark is left open."""
    try:
        found = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:
        return []
    return [cell.strip() for cell in found]


def read_text(file: Path) -> str:
    """The whole file; DataError where it is not there, no text, or cannot be read."""
    files = _READ.get()
    if files is not None and file not in files:
        files.append(file)
    try:
        data = file.read_bytes()
        text = decoded(data)
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; check the data root") from None
    except UnicodeDecodeError as error:
        line = 1 + data[: error.start].count(b"\n")
        raise DataError(
            f"{file} is not UTF-8 text (byte {error.start}, line {line}); is it the annotation file? Save it as UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{file}: line {line} has a zero byte, which no text has; download or write it again")
    return text
