"""Early stopping: training ends when a figure of the validations has not become better for a while."""

from __future__ import annotations

import math
from typing import Any


class EarlyStopping:
    """Counts the validations since the best one; with ``patience`` of them training is ``over``. 0 is never.

    ``metric`` is a key of their summaries, of which more is better, but for ``loss``.
    """

    def __init__(self, patience: int, metric: str) -> None:
        self.patience, self.metric = patience, metric
        self.best, self.waited = -math.inf, 0

    def see(self, summary: dict[str, Any]) -> None:
        value = summary[self.metric] * (-1 if self.metric == "loss" else 1)
        self.best, self.waited = (value, 0) if value > self.best else (self.best, self.waited + 1)

    @property
    def over(self) -> bool:
        return 0 < self.patience <= self.waited

    def __str__(self) -> str:
        return f"{self.waited} validations in a row were no better in {self.metric}"

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
