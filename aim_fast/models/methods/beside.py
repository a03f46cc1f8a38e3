"""What methods share that leave the trunk's blocks as they are: a network beside them, ``side``, is all that trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aim_fast.models.method import Method


@dataclass(frozen=True)
class Beside(Method):
    """Nothing is propagated back through the trunk; ``memory`` "balanced" and "lean" run the network again."""

    beside: ClassVar[bool] = True
    classifier_std: ClassVar[float | None] = None
    reads: ClassVar[str] = ""  # a tensor of the network whose last side is the trunk's width

    def trains(self, name: str, last_norm: str) -> bool:
        return self.is_own(name)

    def is_own(self, name: str) -> bool:
        return name.startswith("side.")
