"""What lies under a data root and makes no clip: counted, named, and refused where it is a class or a tenth of it.

A format tells a :class:`Gaps` what it passes over as it comes upon it; the index says its lines, or refuses.
"""

from __future__ import annotations

from collections.abc import Sequence

from aim_fast.errors import abridged

__all__ = ["Gaps"]

_SHARE = 10  # one file of so many is enough to refuse
_NAMED = 3


class Gaps:
    """What is passed over of one split.

    Attributes: ``lines`` to print, one a kind; ``classes``, such lines that are refused however few they name;
    ``files`` that are lost, names by kind; ``clips``, of which these are a share, where more than the split's.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.classes: list[str] = []
        self.files: dict[str, list[str]] = {}
        self.clips = 0

    def note(self, what: str, names: Sequence[str], *, lost: bool = False) -> None:
        """Some files or folders are passed over, such as "videos that no list names"; ``lost`` where they count."""
        if names:
            self.lines.append(f"passed over: {what}: {len(names)}, {_named(names)}")
            if lost:
                self.files.setdefault(what, []).extend(names)

    def lose(self, what: str, names: Sequence[str]) -> None:
        """As :meth:`note`, of something that is refused however small it is, such as a class."""
        if names:
            self.note(what, names)
            self.classes.append(f"{what}: {len(names)}, {_named(names)}")

    def refusal(self, clips: int) -> str | None:
        """Why a split of so many clips is refused, None where it is not."""
        lost = sum(map(len, self.files.values()))
        total = max(clips, self.clips) + lost
        reasons = list(self.classes)
        if lost and _SHARE * lost >= total:
            reasons += [f"{what}: {len(names)} of {total}, {_named(names)}" for what, names in self.files.items()]
        if not reasons:
            return None
        return (
            f"would be passed over: {'; '.join(reasons)}; convert, rename or move them, or go on without them by "
            "--accept-gaps"
        )


def _named(names: Sequence[str]) -> str:
    return abridged([" ".join(name.split()) for name in names[:_NAMED]] + list(names[_NAMED:]), _NAMED)
