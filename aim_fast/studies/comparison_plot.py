"""A comparison as a picture: one row a model, one panel a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aim_fast.files import replacing
from aim_fast.printable import printable
from aim_fast.studies.comparison import Row

_PANELS = (
    ("trainable", "trained parameters (M)", 1e-6, "tab:purple"),
    ("gflops", "GFLOPs a view", 1.0, "tab:gray"),
    ("forward", "forward, clips/s", 1.0, "tab:cyan"),
    ("train", "training, clips/s", 1.0, "tab:blue"),
    ("memory_mib", "memory of a step (MiB)", 1.0, "tab:orange"),
)


def draw_comparison(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draws ``rows`` as bars, a panel for every figure that at least one of them has, and writes a PNG.

    Top-1 is filled where it was measured and an outline where it was published. Raises OSError where ``path`` cannot be
    written.
    """
    from matplotlib.figure import Figure

    panels = [panel for panel in _PANELS if any(getattr(row, panel[0]) is not None for row in rows)]
    accurate = any(row.top1 is not None or row.published_top1 is not None for row in rows)
    count = len(panels) + accurate
    figure = Figure(figsize=(3 + 2.2 * count, 1.4 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    places = range(len(rows))
    for panel, (name, label, factor, colour) in zip(axes, panels):
        values = [None if (value := getattr(row, name)) is None else value * factor for row in rows]
        bars = panel.barh(places, [value or 0 for value in values], color=colour, height=0.7)
        panel.bar_label(bars, ["–" if value is None else f"{value:.3g}" for value in values], padding=2, fontsize=7)
        panel.set_xlabel(label, fontsize=8)
        panel.margins(x=0.25)
    if accurate:
        panel = axes[-1]
        panel.barh(places, [row.published_top1 or 0 for row in rows], height=0.7, fill=False, edgecolor="tab:green")
        panel.barh(places, [row.top1 or 0 for row in rows], height=0.45, color="tab:green")
        for place, row in enumerate(rows):
            best = max(row.top1 or 0, row.published_top1 or 0)
            words = [
                f"{row.top1:.1f}" if row.top1 is not None else "",
                f"published {row.published_top1:.1f}" if row.published_top1 is not None else "",
            ]
            panel.text(best + 1, place, ", ".join(filter(None, words)), va="center", fontsize=7)
        panel.set_xlabel("top-1 (%)", fontsize=8)
        panel.set_xlim(0, 150)
        panel.set_xticks(range(0, 101, 25))
    axes[0].set_yticks(places, [printable(f"{row.model}, {row.frames} frames") for row in rows], fontsize=8)
    axes[0].invert_yaxis()
    for panel in axes:
        panel.tick_params(axis="x", labelsize=7)
        panel.grid(axis="x", alpha=0.3)
    figure.suptitle(title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
