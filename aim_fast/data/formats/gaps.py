"""What a data set has and no clip is made of: counted and named, and refused where it is a class or a tenth of the files.

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

    Attributes: ``lines`` to print, one a kind; ``files`` that are lost, by name; ``reasons`` to refuse whatever the
    number of files; ``clips``, of which the lost files are a share, where they are more than those of the split.
    """

    def __init__(self) -> None:
        self.clips = 0
        self.lines: list[str] = []
        self.files: list[str] = []
        self.reasons: list[str] = []

    def note(self, what: str, names: Sequence[str], *, lost: bool = False) -> None:
        """Some files or folders are passed over, such as "videos that no list names"; ``lost`` where they count."""
        if names:
            self.lines.append(f"passed over: {len(names)} {what}, {_named(names)}")
            self.files += names if lost else ()

    def lose(self, what: str, names: Sequence[str]) -> None:
        """As :meth:`note`, of something that is refused however small it is, such as a class."""
        if names:
            self.note(what, names)
            self.reasons.append(f"{len(names)} {what}, {_named(names)}")

    def refusal(self, clips: int) -> str | None:
        """Why a split of so many clips is refused, None where it is not."""
        reasons, total = list(self.reasons), max(clips, self.clips) + len(self.files)
        if self.files and _SHARE * len(self.files) >= total:
            reasons.append(f"{len(self.files)} of {total} files, {_named(self.files)}")
        if not reasons:
            return None
        return (
            f"no clip is made of {'; nor of '.join(reasons)}: convert, rename or move them, or go on without by "
            "--accept-gaps"
        )


def _named(names: Sequence[str]) -> str:
    return abridged([" ".join(name.split()) for name in names[: _NAMED + 1]] + list(names[_NAMED + 1 :]), _NAMED)
