"""What every format makes of its annotation files: the clips of a split with their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aim_fast.data.formats.gaps import Gaps

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
    """The clips of one split, in the order of the annotations, and the class names by class id.

    ``gaps`` finds what is there and no clip is made of.
    """

    classes: list[str]
    clips: list[Clip]
    gaps: Callable[[], Gaps] = field(default=Gaps, compare=False)
