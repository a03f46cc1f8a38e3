"""What a graph takes and how it fails, apart from any one graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aim_fast.data.plan import ClipPlan

__all__ = ["ClipInput", "GraphError", "GraphTooNarrow"]


class GraphError(Exception):
    """A batch that a graph could not produce; the graph is of no use after it."""


class GraphTooNarrow(GraphError):
    """A batch needs a decoder that the graph was made without; the next one has it."""


@dataclass(slots=True)
class ClipInput:
    """One clip for the graph: what to do, and the file (decoded by DALI) or its frames uint8 [U, H, W, 3] (by PyAV)."""

    plan: ClipPlan
    path: str
    pixels: np.ndarray | None = None
