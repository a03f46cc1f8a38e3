"""What each row of a comparison that trains begins from, said before anything runs.

A row on the trunk takes the trunk's weights; a model of its own those that its word names, or random ones. A row that
has none, or whose file is not there, is refused with all the others of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from aim_fast.errors import UsageError
from aim_fast.studies.cells import Cell
from aim_fast.training.recipe import Recipe

__all__ = ["check_row_weights"]


def check_row_weights(base: Recipe, cells: Sequence[Cell], say: Callable[[str], None]) -> None:
    """A line to ``say`` for each row; raises UsageError for those without weights, and whose file is not there."""
    without: dict[str, list[str]] = {}
    for cell in cells:
        model = base.replace(**cell.changes).model
        name = cell.title.partition(",")[0]
        if model.weights == "random":
            say(f"{cell.title}: from random weights; {name},weights=FILE takes its own ({model.model})")
        elif model.weights is None:
            say(f"{cell.title}: needs the weights of {model.model}'s trunk")
            without.setdefault("no --weights: give a file of the trunk's, or random", []).append(cell.title)
        elif _is_missing(model.weights):
            say(f"{cell.title}: needs {model.weights}, which is not there")
            without.setdefault(f"no file {model.weights}: give one that is there", []).append(cell.title)
        else:
            say(f"{cell.title}: from {model.weights}")
    if without:
        raise UsageError(
            "nothing is trained: " + "; ".join(f"{', '.join(rows)}: {why}" for why, rows in without.items())
        )


def _is_missing(weights: str) -> bool:
    """Whether weights are of no library's or hub's name, and no file or folder."""
    return ":" not in weights and not Path(weights).exists()
