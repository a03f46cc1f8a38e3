"""The table of a study: a line a cell, over its seeds, as text, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields

from aim_fast.studies.cells import Cell


@dataclass(frozen=True)
class CellResult:
    """One finished run: shares of 1, numbers of trained values, seconds from start to end (None where it was
    interrupted), 10⁹ multiply-adds of a view, and what :class:`aim_fast.studies.spending.Spending` says."""

    key: str
    seed: int
    top1: float
    top5: float
    trained: int
    seconds: float | None
    epochs: int | None = None
    gflops: float | None = None
    hours: float | None = None
    clips_per_s: float | None = None
    peak_memory: int | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table: a cell over its finished seeds; ``top1`` and ``spread``, its deviation, in percent;
    ``hours``, ``seconds`` and ``clips_per_s`` means, ``memory_gib`` the most; ``failed`` why a run of it has no result.
    """

    title: str
    seeds: int
    top1: float | None
    spread: float | None
    trained: int | None
    seconds: float | None
    published: float | None
    hours: float | None = None
    memory_gib: float | None = None
    gflops: float | None = None
    clips_per_s: float | None = None
    epochs: int | None = None
    recipe: str | None = None
    failed: str | None = None


def row_of(cell: Cell, found: Sequence[CellResult], failures: Sequence[str]) -> Row:
    """A cell's line of the results of its seeds."""
    top1 = [100 * result.top1 for result in found]
    peaks = [result.peak_memory for result in found if result.peak_memory is not None]
    return Row(
        cell.title,
        len(found),
        round(statistics.mean(top1), 2) if top1 else None,
        round(statistics.stdev(top1), 2) if len(top1) > 1 else None,
        found[0].trained if found else None,
        _mean((result.seconds for result in found), 1),
        cell.published,
        _mean((result.hours for result in found), 5),
        round(max(peaks) / 2**30, 3) if peaks else None,
        found[0].gflops if found else None,
        _mean((result.clips_per_s for result in found), 2),
        found[0].epochs if found else None,
        cell.recipe,
        failures[0] if failures else None,
    )


def _mean(values: Iterable[float | None], digits: int) -> float | None:
    there = [value for value in values if value is not None]
    return round(statistics.mean(there), digits) if there else None


def _score(row: Row) -> str:
    if row.top1 is None:
        return "failed" if row.failed else "–"
    return f"{row.top1:.1f}" + (f" ± {row.spread:.1f}" if row.spread is not None else "")


# Of each column its heading and what a row has in it.
_TOP1: tuple[str, Callable[[Row], str]] = ("top-1 %", _score)
_TRAINED = ("trained", lambda row: _shown(row.trained, ","))
_PUBLISHED = ("published", lambda row: _shown(row.published, ".1f"))
_ABLATION = (_TRAINED, _TOP1, ("seconds", lambda row: _shown(row.seconds, ".0f")), _PUBLISHED)
_METHODS = (
    _TOP1,
    ("hours", lambda row: _shown(row.hours, ".3g")),
    ("peak GiB", lambda row: _shown(row.memory_gib, ".2f")),
    _TRAINED,
    ("GFLOPs", lambda row: _shown(row.gflops, ".4g")),
    ("clips/s", lambda row: _shown(row.clips_per_s, ".3g")),
    _PUBLISHED,
    ("epochs", lambda row: _shown(row.epochs, "")),
    ("recipe", lambda row: row.recipe or "–"),
)


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _cells(rows: Sequence[Row], methods: bool) -> list[list[str]]:
    columns = _METHODS if methods else _ABLATION
    head = ["", *(heading for heading, _ in columns)]
    return [head, *([row.title, *(cell(row) for _, cell in columns)] for row in rows)]


def as_text(rows: Sequence[Row], methods: bool) -> str:
    """Aligned columns, the recipe's last, and a line for each row that failed."""
    lines = _cells(rows, methods)
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    left = {0, len(widths) - 1} if methods else {0}
    text = [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*text, *(f"{row.title} failed: {row.failed}" for row in rows if row.failed)])


def as_markdown(rows: Sequence[Row], methods: bool) -> str:
    """The same as a table of Markdown."""
    head, *body = _cells(rows, methods)
    rule = ["---", *("--:" for _ in head[1:])]
    lines = [" | ".join(cell.replace("|", r"\|") for cell in line) for line in (head, rule, *body)]
    failed = [f"\n{row.title} failed: {row.failed}" for row in rows if row.failed]
    return "\n".join([*(f"| {line} |" for line in lines), *failed])


def as_csv(rows: Sequence[Row]) -> str:
    """Every field of every row, with a line of names."""
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, [field.name for field in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return sheet.getvalue()
