"""A study as a picture: bars of top-1, or for methods top-1 against what each trains, takes and needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aim_fast.files import replacing
from aim_fast.printable import printable
from aim_fast.studies.study_table import Row

_AGAINST = (
    ("trained", "trained parameters (M)", 1e-6, "log"),
    ("hours", "hours of training", 1.0, "linear"),
    ("memory_gib", "peak memory (GiB)", 1.0, "linear"),
)


def draw_study(rows: Sequence[Row], title: str, path: Path, methods: bool) -> None:
    """Writes a PNG. Raises OSError where ``path`` cannot be written."""
    figure = _scatter(rows) if methods else _bars(rows)
    figure.suptitle(printable(title), fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _bars(rows: Sequence[Row]) -> Any:
    """Measured top-1 as bars, with published ones as outlines beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    measured = axes.barh(
        [place - 0.18 for place in places], [row.top1 or 0 for row in rows], height=0.34, color="tab:blue",
        xerr=[row.spread or 0 for row in rows], label="measured",
    )  # fmt: skip
    published = axes.barh(
        [place + 0.2 for place in places], [row.published or 0 for row in rows], height=0.3, fill=False,
        edgecolor="tab:gray", label="published (its own data set)",
    )  # fmt: skip
    axes.bar_label(measured, ["" if row.top1 is None else f"{row.top1:.1f}" for row in rows], padding=3, fontsize=8)
    axes.bar_label(published, ["" if row.published is None else f"{row.published:.1f}" for row in rows], padding=3,
                   fontsize=7, color="tab:gray")  # fmt: skip
    axes.set_yticks(places, [printable(row.title) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="top-1 (%)", xlim=(0, 108))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right", fontsize=7)
    return figure


def _scatter(rows: Sequence[Row]) -> Any:
    """Top-1 against trained parameters, hours and memory, a point a row, its deviation over the seeds as a bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5), layout="constrained")
    for axes, (name, label, factor, scale) in zip(figure.subplots(1, len(_AGAINST), sharey=True), _AGAINST):
        for number, row in enumerate(rows):
            value = getattr(row, name)
            if row.top1 is None or value is None:
                continue
            colour = f"C{number % 10}"
            axes.errorbar(value * factor, row.top1, yerr=row.spread, fmt="o", color=colour, markersize=5, capsize=2)
            axes.annotate(printable(row.title), (value * factor, row.top1), (4, 4), textcoords="offset points",
                          fontsize=7, color=colour)  # fmt: skip
        axes.set_xscale(scale)
        axes.set_xlabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.margins(x=0.15, y=0.1)
        axes.grid(alpha=0.3)
        if name == "trained":
            axes.set_ylabel("top-1 (%)", fontsize=8)
    return figure
