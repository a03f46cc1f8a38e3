"""Bars of one training step, ours beside the published structure: its time, and the bytes that it keeps for backward.

``python -m docs.figures.step`` reads ``bench/results/cpu-2-cores-step.json``, which ``python -m bench step`` wrote, and
writes ``docs/figures/step-light.svg`` and ``step-dark.svg``. A side that is not measured has no bar and says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.figures.palette import Palette, write_both

RESULTS = Path(__file__).parents[2] / "bench/results/cpu-2-cores-step.json"
SIDES = {
    "published": "published structure",
    "published_compiled": "the same, compiled",
    "fast": "aim-fast, fast",
    "balanced": "aim-fast, balanced",
    "lean": "aim-fast, lean",
}


def draw(palette: Palette, results: Mapping[str, Any] | None = None) -> Figure:
    """Two panels; ``results`` as ``bench.step`` gives them, those kept in ``bench/results`` if not given."""
    results = json.loads(RESULTS.read_text()) if results is None else results
    figure = Figure(figsize=(9, 2.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, palette, "seconds a training step", results["seconds"], "{:.2f} s", results["spread"])
    _panel(right, palette, "MiB a clip kept for the backward pass", results["saved_mib_per_clip"], "{:.0f} MiB")
    right.set_yticklabels([])
    return figure


def _panel(
    axes: Axes,
    palette: Palette,
    title: str,
    values: Mapping[str, float],
    form: str,
    spread: Mapping[str, float] | None = None,
) -> None:
    """One bar a side from the top down, with its figure and its part of the published structure's."""
    axes.set_title(title, fontsize=10, color=palette.text, loc="left")
    whole = values["published"]
    for row, side in enumerate(SIDES):
        if side not in values:
            axes.text(0.01 * whole, row, "unmeasured", va="center", fontsize=9, color=palette.quiet)
            continue
        ours = not side.startswith("published")
        face, edge = (palette.trained, palette.trained_edge) if ours else (palette.frozen, palette.frozen_edge)
        axes.barh(row, values[side], height=0.66, color=face, edgecolor=edge, linewidth=1.2)
        end = values[side]
        if spread:
            axes.errorbar(end, row, xerr=spread[side] * end, color=edge, capsize=3, lw=1.2)
            end *= 1 + spread[side]
        share = "" if side == "published" else f"  ({values[side] / whole:.2f} ×)"
        words = form.format(values[side]) + share
        axes.text(end + 0.02 * whole, row, words, va="center", fontsize=9, color=palette.text)
    axes.set_yticks(range(len(SIDES)), SIDES.values(), fontsize=9.5, color=palette.text)
    axes.set_ylim(len(SIDES) - 0.45, -0.55)
    axes.set_xlim(0, 1.3 * whole)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.spines["left"].set(visible=True, color=palette.line)
    axes.patch.set_alpha(0)


if __name__ == "__main__":
    write_both(draw, Path(__file__).parent, "step")
