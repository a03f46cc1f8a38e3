"""What every format makes of its annotation files: the clips of a split with their labels."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["UNLABELLED", "Clip", "Listing"]

UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Clip:
    """One video of a split: where it is, its class (``UNLABELLED`` where the split has no answers) and its name."""

    path: str
    label: int
    id: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The clips of one split, in the order of the annotations, and the class names by class id."""

    classes: list[str]
    clips: list[Clip]
