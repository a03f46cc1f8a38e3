"""The trunk as an image model, frame by frame, without any idea of time: frozen under a trained head, or trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aim_fast.models.method import Method


@dataclass(frozen=True)
class Probe(Method):
    """Nothing but the head trains; what the trunk gives can be stored once for every clip."""

    name: ClassVar[str] = "probe"
    line: ClassVar[str] = "the frozen trunk frame by frame: the head alone trains"


@dataclass(frozen=True)
class Full(Method):
    """Everything trains: full fine-tuning, space-only."""

    name: ClassVar[str] = "full"
    line: ClassVar[str] = "the whole trunk fine-tuned frame by frame"

    def trains(self, name: str, last_norm: str) -> bool:
        return True

    def lowest(self, depth: int) -> int:
        return 0
