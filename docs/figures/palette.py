"""Colours of the drawings in light and in dark, and how a drawing is written: one SVG for each, on no background.

GitHub shows the one that fits the reader's theme: ``<picture>`` with a ``prefers-color-scheme`` source.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure


class Palette(NamedTuple):
    """``frozen`` and ``trained`` are fills, each with its ``_edge``; ``panel`` lies behind a part of a drawing."""

    text: str
    quiet: str
    line: str
    panel: str
    frozen: str
    frozen_edge: str
    trained: str
    trained_edge: str


PALETTES = {
    "light": Palette("#1f2328", "#59636e", "#59636e", "#f6f8fa", "#dfe6ee", "#7b8896", "#ffd8a8", "#d9730d"),
    "dark": Palette("#e6edf3", "#9198a1", "#9198a1", "#151b23", "#323b47", "#8592a1", "#6b3f12", "#f0883e"),
}


def write_both(draw: Callable[[Palette], Figure], folder: Path, name: str) -> None:
    """Writes ``name-light.svg`` and ``name-dark.svg`` to ``folder``; text is drawn, so that no font is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for theme, palette in PALETTES.items():
        with rc_context({"svg.hashsalt": name, "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
            # without a date the same drawing is the same file
            draw(palette).savefig(folder / f"{name}-{theme}.svg", transparent=True, metadata={"Date": None})
