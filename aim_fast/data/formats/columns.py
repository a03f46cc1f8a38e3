"""The lines of a list file as paths and labels, whatever tool wrote it.

Lines are CSV of one delimiter (comma, tab, semicolon or bar) with as many cells each, or a path, whose end is told by
the video's extension, and behind it the label. A heading, comments, an index before the path and columns that are of no
use here are told from clips; where it is not sure which column is the label, the line is refused.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from aim_fast.data.formats.annotation import cells_of, is_comment, read_lines, unquoted
from aim_fast.data.formats.extensions import ANY_EXTENSION
from aim_fast.errors import DataError

__all__ = ["Sheet", "label_column", "read_sheet"]

Rows = list[tuple[int, list[str]]]  # number of the line, its cells

_VIDEO = re.compile(rf"(?:{ANY_EXTENSION})[\"']?$", re.IGNORECASE)
_ENTRY = re.compile(rf"(?P<path>.*(?:{ANY_EXTENSION})[\"']?)(?:\s*[,;|:\t]\s*|\s+)(?P<label>\S.*)", re.IGNORECASE)
_BARE = re.compile(r"(?P<path>.+?)[\s,;|]+(?P<label>\"[^\"]+\"|[^\s,;|]+)")  # of a folder of pictures, without spaces
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")
_INDEX = re.compile(r"\"?(?P<number>\d+)\"?[\s,;|]+(?P<path>.+)")
_PATHS = (
    *("path", "videopath", "filepath", "file", "filename", "video", "videoname", "videofile", "clip", "clippath"),
    *("clipname", "name", "videoid", "vidname", "id"),
)
_LABELS = (
    *("label", "labels", "class", "classname", "labelname", "category", "categoryname", "action", "actionlabel"),
    *("activity", "target", "y", "gesture", "classid", "labelid", "classidx", "classindex", "labelidx", "labelindex"),
    *("categoryid", "actionid", "targetid"),
)
_SPLIT = ("split", "subset", "partition", "usage", "set")
_OTHERS = {
    *("", "unnamed0", "index", "idx", "no", "nr", "row", "frames", "nframes", "numframes", "totalframes", "framecount"),
    *("start", "end", "starttime", "endtime", "timestart", "timeend", "startframe", "endframe", "startsec", "endsec"),
    *("fps", "duration", "length", "width", "height", "size", "person", "subject", "user", "camera", "session", "date"),
    *_SPLIT,
}
_EXPECTED = (
    "expected a path and one label a line, such as 'a/1.mp4 0', or a heading that names the columns, such as "
    "path,frames,label"
)


@dataclass(frozen=True, slots=True)
class Sheet:
    """The lines of a list with their cells.

    Attributes: ``heading``, in lower case without marks, empty where there is none; ``rows``, which has one or more;
    ``path``, the column of the paths; ``passed``, the line that was taken for a heading though its words tell nothing;
    ``spaced``, whether blanks part path and label; ``left_out``, how many clips are commented out.
    """

    file: Path
    heading: list[str]
    rows: Rows
    path: int
    passed: tuple[int, str] | None = None
    spaced: bool = False
    left_out: int = 0

    def like(self, other: Sheet) -> bool:
        """Whether another list has the same columns."""
        return (self.heading, self.path, self.width) == (other.heading, other.path, other.width)

    @property
    def width(self) -> int:
        return len(self.rows[0][1])

    @property
    def times(self) -> list[str]:
        """The names of columns that say which part of a video is meant."""
        return [name for name in self.heading if re.fullmatch(r"(time)?(start|end)(time|frame|sec)?", name)]

    def of_split(self, names: tuple[str, ...]) -> Sheet:
        """The rows that a column of splits gives to the split of these names; all where none is."""
        column = next((column for column, word in enumerate(self.heading) if word in _SPLIT), None)
        rows = [row for row in self.rows if column is not None and row[1][column].lower() in names]
        return replace(self, rows=rows or self.rows)


def read_sheet(file: Path, there: Callable[[str], bool], several: bool = False) -> Sheet:
    """A list's lines with their cells; ``there`` tells whether a path as the list writes it is that of a file.

    With ``several`` the cells of a list without a heading are a path and all that is behind it, perhaps nothing.

    Raises DataError, with the line, for a line that is no clip, no heading and no comment, and where there is no clip.
    """
    lines, left_out = [], 0
    for number, line in enumerate(read_lines(file), start=1):
        line = line.strip(" \r\f\v\ufeff\x1a")
        comment = is_comment(line) and not ((match := _ENTRY.match(line)) and there(unquoted(match["path"])))
        left_out += comment and _ENTRY.fullmatch(line.lstrip("#/ ")) is not None
        if line.strip() and not comment and not re.fullmatch(r"sep=.", line):
            lines.append((number, line))
    if lines and re.match(r"[{\[]\s*[\"{\[]", lines[0][1]):
        raise DataError(f"{file} holds JSON; {_EXPECTED}")
    if several:
        sheet = _with_labels(file, lines, there) if lines else None
    else:
        sheet = _table(file, lines, there) or _anchored(file, lines, there) if lines else None
    if sheet is None or not sheet.rows:
        raise DataError(f"{file} lists no clips; {_EXPECTED}")
    return replace(sheet, left_out=left_out)


def label_column(sheet: Sheet, other: Sheet | None = None) -> int:
    """The column of the labels, judged by the rows of two lists of the same columns together where there are two.

    Raises DataError, with a line, where it is not sure which one is.
    """
    rows = sheet.rows + (other.rows if other is not None and other is not sheet and sheet.like(other) else [])
    column = _label_column(sheet.heading, [cells for _, cells in rows], sheet.path)
    if column is None:
        number, cells = sheet.rows[0]
        beside = ", ".join(cell for place, cell in enumerate(cells) if place != sheet.path)
        raise DataError(
            f"{sheet.file}: line {number} has {beside[:60]!r} beside the path: which is the label, or are they "
            f"several? {_EXPECTED}"
        )
    return column


def _label_column(heading: list[str], rows: list[list[str]], path: int) -> int | None:
    others = [column for column in range(len(rows[0])) if column != path]
    if heading:
        for word in _LABELS:
            if named := [column for column in others if heading[column] == word]:
                return named[0] if len(named) == 1 else None
        others = [column for column in others if heading[column] not in _OTHERS]
        if len(others) == 2 and _frames_and_labels(rows, path, *others):
            return others[1]
        return others[0] if len(others) == 1 else None
    cells = {column: [row[column] for row in rows] for column in others}
    distinct = {column: len(set(cells[column])) for column in others}
    numeric = {column for column in others if all(_NUMBER.fullmatch(cell) for cell in cells[column])}
    # numbers before the path that are all different are rows' numbers, not labels
    others = [c for c in others if not (c < path and c in numeric and (len(rows) == 1 or distinct[c] == len(rows)))]
    texts = [column for column in others if column not in numeric]
    if len(others) == 1:
        return others[0] if others[0] > path or distinct[others[0]] < len(rows) else None
    if len(texts) == 1 and (distinct[texts[0]] < len(rows) or len(rows) < 4):
        return texts[0]
    if not texts and len(others) == 2 and _frames_and_labels(rows, path, *others):
        return others[1]
    return None


def _frames_and_labels(rows: list[list[str]], path: int, first: int, second: int) -> bool:
    """Whether two columns of numbers are surely frames and labels: the labels are all of 0, 1 … or 1, 2 …, and the
    other numbers are above them all, or differ within the folders that the labels follow."""
    if not all(row[column].isdecimal() for row in rows for column in (first, second)):
        return False  # as are columns of names
    frames, labels = ([int(row[column]) for row in rows] for column in (first, second))
    known = sorted(set(labels))
    if len(known) in (1, len(rows)) or known[0] > 1 or known != list(range(known[0], known[0] + len(known))):
        return False
    if min(frames) > known[-1]:
        return True
    folders: dict[str, set[int]] = defaultdict(set)
    lengths: dict[str, set[int]] = defaultdict(set)
    for row, frame, label in zip(rows, frames, labels):
        folder = re.split(r"[/\\]", row[path])[-2:-1]
        folders["".join(folder)].add(label)
        lengths["".join(folder)].add(frame)
    one_to_one = len(folders) == len(known) and all(len(found) == 1 for found in folders.values())
    return one_to_one and any(len(found) > 1 for found in lengths.values())


def _table(file: Path, lines: list[tuple[int, str]], there: Callable[[str], bool]) -> Sheet | None:
    """The sheet of CSV with as many cells a line; None for a file that is none, or whose paths are not told."""
    for delimiter in "\t,;|":
        if delimiter not in lines[0][1]:
            continue
        cells = [cells_of(line, delimiter) for _, line in lines]
        while all(row and not row[-1] for row in cells):  # every line ends in a delimiter
            cells = [row[:-1] for row in cells]
        width = Counter(map(len, cells)).most_common(1)[0][0]  # of two as frequent ones the first line's
        alike = [(number, row) for (number, _), row in zip(lines, cells) if len(row) == width]
        if width < 2 or (width == 2 and len(alike) < len(lines)):  # a path or a name may hold a comma
            continue
        if sheet := _told(file, alike, there):
            if len(alike) < len(lines):
                number, odd = next((number, row) for (number, _), row in zip(lines, cells) if len(row) != width)
                raise DataError(
                    f"{file}: line {number} has {len(odd) or 'no whole'} cells, most lines {width}; complete it, or "
                    "put quotation marks around what holds the delimiter"
                )
            return sheet
    return None


def _with_labels(file: Path, lines: list[tuple[int, str]], there: Callable[[str], bool]) -> Sheet:
    """The sheet of lines that each have a path and any number of labels, or of a table with a heading of both."""
    words = [re.sub(r"[\W_]+", "", word).lower() for word in re.split(r"[\s,;|]+", lines[0][1])]
    if {*_PATHS} & set(words) and {*_LABELS} & set(words) and not there(lines[0][1].split()[0]):
        if sheet := _table(file, lines, there):
            return sheet
        lines = lines[1:]
    rows = []
    for number, line in lines:
        match = _ENTRY.fullmatch(line) or _BARE.fullmatch(line)
        path, label = (match["path"], line[match.start("label") :]) if match else (line, "")
        if _VIDEO.search(line) and (match is None or there(unquoted(line))):
            path, label = line, ""
        if not _VIDEO.search(path) and not there(unquoted(path)):
            raise _no_entry(file, number, line, unquoted(path))
        rows.append((number, [unquoted(path), label]))
    return Sheet(file, [], rows, 0)


def _told(file: Path, rows: Rows, there: Callable[[str], bool]) -> Sheet | None:
    """The sheet of rows of as many cells, where it is told which are the paths."""
    first, body = rows[0][1], [cells for _, cells in rows[1:]] or [rows[0][1]]
    words = [re.sub(r"[\W_]+", "", cell).lower() for cell in first]
    videos = [
        column
        for column in range(len(first))
        if 2 * sum(_VIDEO.search(cells[column]) is not None for cells in body) > len(body)
    ]
    named = [column for word in _PATHS for column in range(len(first)) if words[column] == word]
    known = bool(named) and any(word in _LABELS for word in words)
    path = next((column for column in named if column in videos or not videos), None) if known or videos else None
    if path is None and len(videos) == 1:
        path = videos[0]
    if path is None and not videos and len(first) == 2:
        path = 0
    if path is None:
        return None
    headed = (known or len(rows) > 1) and _headed(first[path], bool(videos), known, there)
    headed = headed or (not videos and not known and _labels_differ([cells[1 - path] for _, cells in rows]))
    passed = (rows[0][0], ",".join(first)) if headed and not known else None
    rows = [row for row in rows if not headed or row[1] != first]  # files put together repeat it
    if not headed and path:
        before = [column for column in range(path) if not all(_NUMBER.fullmatch(cells[column]) for _, cells in rows)]
        if before and (len(first) > 2 or there(", ".join(first)) or there(",".join(first))):
            return None  # the path may hold a comma
    if not videos and rows and not any(there(cells[path]) for _, cells in rows):
        raise _no_entry(file, rows[0][0], ",".join(rows[0][1]), rows[0][1][path])
    if videos and not all(_VIDEO.search(cells[path]) or there(cells[path]) for _, cells in rows):
        return None
    return Sheet(file, words if headed else [], rows, path, passed)


def _headed(cell: str, videos: bool, known: bool, there: Callable[[str], bool]) -> bool:
    """Whether what stands first in the column of paths is the heading."""
    return not _VIDEO.search(cell) and (known or (videos and not re.search(r"[/\\]", cell))) and not there(cell)


def _labels_differ(labels: list[str]) -> bool:
    """Whether the first label alone is a word, among numbers."""
    return len(labels) > 2 and not _NUMBER.fullmatch(labels[0]) and all(map(_NUMBER.fullmatch, labels[1:]))


def _anchored(file: Path, lines: list[tuple[int, str]], there: Callable[[str], bool]) -> Sheet:
    """The sheet of lines whose paths end in a video's extension, or of lines of two words."""
    rows: Rows = []
    passed, heading = None, ""
    matches = [_ENTRY.fullmatch(line) for _, line in lines]
    videos = 2 * sum(match is not None for match in matches) > len(lines)
    if not videos and all(_VIDEO.search(line) for _, line in lines):
        return _labels_first(file, lines, there)
    for place, ((number, line), match) in enumerate(zip(lines, matches)):
        if match is not None:
            rows.append((number, [match["path"], _uncommented(file, number, match["label"].rstrip(",;| "))]))
            continue
        bare = _BARE.fullmatch(line)
        words = [re.sub(r"[\W_]+", "", word).lower() for word in re.split(r"[\s,;|]+", line)]
        known = bool({*_PATHS} & set(words) and {*_LABELS} & set(words))
        if place == 0 and (known or (len(lines) > 1 and videos and _heads(line, lines, there))):
            heading, passed = line, None if known else (number, line)
        elif bare and line != heading and (not videos or there(unquoted(bare["path"]))):
            rows.append((number, [bare["path"], unquoted(bare["label"])]))
        elif line != heading:
            raise _no_entry(file, number, line)
    if not videos and not heading and rows and _labels_differ([cells[1] for _, cells in rows]):
        passed, rows = lines[0], rows[1:]
    if not videos and rows and not any(there(unquoted(cells[0])) for _, cells in rows):
        raise _no_entry(file, *lines[rows[0][0] > lines[0][0]], rows[0][1][0])
    return Sheet(file, [], _divided(file, _without_index(rows, there)), 0, passed, spaced=True)


def _heads(line: str, lines: list[tuple[int, str]], there: Callable[[str], bool]) -> bool:
    """Whether a first line that is no entry is a heading: words without a number, a path, or another line's label."""
    words = re.split(r"[\s,;|]+", line)
    last = {other.split()[-1] for _, other in lines[1:]}
    return len(words) > 1 and not re.search(r"[/\\]|^\d|\s\d", line) and words[-1] not in last and not there(words[0])


def _labels_first(file: Path, lines: list[tuple[int, str]], there: Callable[[str], bool]) -> Sheet:
    """The sheet of lines 'label path', where that is sure."""
    rows = []
    for number, line in lines:
        label, _, path = re.sub(r"[\s,;|]+", " ", line, count=1).partition(" ")
        if not path or there(unquoted(line)) or not (label.isdecimal() or there(unquoted(path))):
            raise _no_entry(file, number, line)
        rows.append((number, [label, unquoted(path)]))
    if len({cells[0] for _, cells in rows}) == len(rows):
        raise _no_entry(file, *lines[0])
    return Sheet(file, [], rows, 1, spaced=True)


def _without_index(rows: Rows, there: Callable[[str], bool]) -> Rows:
    """Rows with plain paths, without the numbers of rows before them where every one has one."""
    plain = [(number, [unquoted(cells[0]), *cells[1:]]) for number, cells in rows]
    if not rows or not _INDEX.fullmatch(rows[0][1][0]) or there(plain[0][1][0]):
        return plain
    found = [_INDEX.fullmatch(cells[0]) for _, cells in rows]
    if not all(found):
        return plain
    numbers = [int(match["number"]) for match in found if match]
    counted = len(rows) > 1 and numbers == list(range(numbers[0], numbers[0] + len(rows))) and numbers[0] < 2
    if not counted and not all(there(unquoted(match["path"])) for match in (found[0], found[-1]) if match):
        return plain
    return [(number, [unquoted(match["path"]), *cells[1:]]) for (number, cells), match in zip(rows, found) if match]


def _divided(file: Path, rows: Rows) -> Rows:
    """Rows whose labels are parted into columns where they are numbers, or a number and a name that it is not part of.

    Raises DataError for a line with several numbers where others have another count of them.
    """
    if all(cells[1].isdecimal() for _, cells in rows):
        return rows
    parts = [re.split(r"[\s,;|]+", cells[1]) for _, cells in rows]
    counts = [len(part) if all(map(_NUMBER.fullmatch, part)) else 0 for part in parts]
    if rows and min(counts) > 1 and len(set(counts)) == 1:
        return [(number, [cells[0], *part]) for (number, cells), part in zip(rows, parts)]
    for (number, cells), count in zip(rows, counts):
        if count > 1:
            raise DataError(
                f"{file}: line {number} has {count} numbers behind the path, {cells[1][:60]!r}: is it several labels? "
                f"{_EXPECTED}"
            )
    for form in (r"(\d+)[\s,;|]+(\D.*)", r"(.*\D)[\s,;|]+(\d+)"):
        found = [re.fullmatch(form, cells[1]) for _, cells in rows]
        names = {match[2 if match[1].isdecimal() else 1].strip() for match in found if match}
        if all(found) and 2 * len(names) <= len(rows) < 2 * len({cells[1] for _, cells in rows}):
            return [(number, [cells[0], match[1], match[2]]) for (number, cells), match in zip(rows, found) if match]
    return rows


def _uncommented(file: Path, number: int, label: str) -> str:
    """A label without the comment behind it."""
    if ("#" in label or "//" in label) and (
        match := re.fullmatch(r"(?P<label>\S.*?)\s+(?:#|//)(?P<text>\s.*|\D.*|)", label)
    ):
        if _NUMBER.fullmatch(match["label"]):
            return match["label"]
        if not match["text"] or match["text"][0].isspace():
            raise DataError(
                f"{file}: line {number} has {label[:60]!r} behind the path: is it a comment, or part of the label? Put "
                "it on a line of its own, or the label in quotation marks"
            )
    return label


def _no_entry(file: Path, number: int, line: str, path: str = "") -> DataError:
    missing = f" (no file {path[:80]!r} is there, with a video's extension or without)" if path else ""
    return DataError(f"{file}: line {number} is not 'path label': {line[:80]!r}{missing}; {_EXPECTED}")
