"""ActionCLIP: both towers of a CLIP trained against texts of class names, by a loss between the clips of a batch.

The image tower runs frame by frame, as it is; what reads it, and the loss, are in
:mod:`aim_fast.models.heads.actionclip`. On trunks other than CLIP's the form is ours. Source: Wang et al., ActionCLIP:
A New Paradigm for Video Action Recognition, 2021.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from aim_fast.models.method import Method


@dataclass(frozen=True)
class ActionCLIP(Method):
    """Nothing is added to a block, and all of it trains."""

    heading: ClassVar[str] = "ActionCLIP"
    name: ClassVar[str] = "actionclip"
    line: ClassVar[str] = "both towers of a CLIP trained against prompted class names, clip by clip (2021)"
    lr_factors: ClassVar[Mapping[str, float]] = {"fusion.*": 10.0}

    def trains(self, name: str, last_norm: str) -> bool:
        return True

    def lowest(self, depth: int) -> int:
        return 0

    def published_name(self, name: str) -> str:
        if name.startswith("fusion."):
            return name
        return name.removeprefix("text.") if name.startswith("text.") else f"visual.{name}"

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        return any(name.startswith("fusion.") for name in names)
