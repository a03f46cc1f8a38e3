"""Horizontal bars of one measured quantity, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aim_fast.files import replacing


def draw_bars(values: Mapping[str, float], title: str, path: Path) -> None:
    """One bar a name, longest at the bottom, each with its figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted(values, key=lambda name: values[name], reverse=True)
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(names) + 1.2), layout="constrained")
    bars = axes.barh(names, [values[name] for name in names], color="#4477aa")
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
