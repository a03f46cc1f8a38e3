"""Annotation files read with errors that say which file, which line, and what to do."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from aim_fast.errors import DataError

__all__ = [
    "MOST_CLASSES",
    "class_number",
    "files_read",
    "in_order",
    "numbered_lines",
    "read_entries",
    "read_json",
    "read_lines",
    "read_table",
]

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
        return json.loads(_text(file))
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
    lines = _text(file).split("\n")  # str.splitlines() would also cut at marks that names may hold, such as U+2028
    return lines if lines[-1] else lines[:-1]


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(line number, line without the blanks at its ends) of every line that is not blank."""
    return ((number, line.strip()) for number, line in enumerate(read_lines(file), start=1) if line.strip())


def read_table(file: Path, delimiter: str = ",") -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The headings of a CSV file, in lower case, and (line number, row) of every line under them."""
    reader = csv.DictReader(read_lines(file), delimiter=delimiter, skipinitialspace=True)
    try:
        headings = [name.strip().lower() for name in reader.fieldnames or []]
        reader.fieldnames = headings
        rows = [
            (reader.line_num, {name: value.strip() for name, value in row.items() if name and isinstance(value, str)})
            for row in reader
        ]
    except csv.Error as error:
        raise DataError(
            f"{file}: line {reader.line_num} is not CSV ({error}); is a quotation mark left open before it?"
        ) from None
    return headings, rows


def in_order(file: Path, names: list[tuple[int, str]], first: int = 0) -> list[str]:
    """Class names by their numbers, which must be ``first``, ``first`` + 1 and so on, each once."""
    last = first + len(names) - 1
    if sorted(number for number, _ in names) != list(range(first, last + 1)):
        raise DataError(f"{file}: class numbers are not {first} to {last}, each once; download the file again")
    return [name for _, name in sorted(names)]


def class_number(text: str) -> int | None:
    """The number that ``text`` is, None for anything else and for one that no class can have."""
    number = int(text) if text.isdecimal() and len(text) < 10 else MOST_CLASSES
    return number if number < MOST_CLASSES else None


def _text(file: Path) -> str:
    files = _READ.get()
    if files is not None and file not in files:
        files.append(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; check the data root") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}); is it the annotation file?") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{file}: line {line} has a zero byte, which no text has; download or write it again")
    return text
