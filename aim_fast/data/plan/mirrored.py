"""The class that a mirrored clip has where classes tell left from right.

"Pushing something from left to right" becomes "Pushing something from right to left": by the names alone, which on
Something-Something v2 gives the three pairs that are swapped in published training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from aim_fast.errors import UsageError

__all__ = ["mirrored_classes"]

_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}


def mirrored_classes(classes: Sequence[str]) -> np.ndarray:
    """int64 [K]: of each class its mirrored one; itself where its name says no side, -1 where no class has that name.

    Raises UsageError where no two classes are each other's.
    """
    number = {name: label for label, name in enumerate(classes)}
    mirrored = [_SIDE.sub(lambda found: _OTHER.get(found[0], found[0]), name) for name in classes]
    labels = np.array([number.get(name, -1) for name in mirrored])
    if not ((labels >= 0) & (labels != np.arange(len(labels)))).any():
        raise UsageError("no two of these classes differ by left and right alone: leave flip_labels out")
    return labels
