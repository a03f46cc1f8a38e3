"""What can go wrong through a user's input or a user's files, as one small family.

Every message is one line that says what is wrong, where, and what to do. The command line prints it and exits with
status 2; a library caller catches :class:`AimFastError` or one of its kinds.
"""

import difflib
from collections.abc import Iterable


class AimFastError(Exception):
    """Base of every error that the reader of its message can mend."""


class UsageError(AimFastError):
    """An argument, option or recipe field that cannot be: unknown, out of range or in conflict with another."""


class DataError(AimFastError):
    """A data set, annotation file, index or video that is missing, malformed or cannot be decoded."""


class WeightsError(AimFastError):
    """A weights file or tag that is missing, unreadable, or of another architecture."""


class CheckpointError(AimFastError):
    """A run or checkpoint that is missing, incomplete, or belongs to another recipe."""


class TrainingError(AimFastError):
    """A run that cannot go on: a loss that is not finite, or memory that does not suffice."""


def abridged(names: list[str], most: int = 5) -> str:
    """The first ``most`` of some names, for a message: "a, b and 3 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def nearest(word: str, known: Iterable[str], most: int = 1) -> str:
    """The end of a message about an unknown word: the nearest known ones, at most ``most``, or all of them."""
    known = list(known)
    plain = {name.lower(): name for name in reversed(known)}
    near = [repr(plain[match]) for match in difflib.get_close_matches(word.lower(), list(plain), most, cutoff=0.4)]
    if near:
        return f"did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?"
    return f"known: {', '.join(known)}"
