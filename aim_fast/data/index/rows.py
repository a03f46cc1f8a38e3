"""The index of a split: one row a clip with its label and what a full decode of its file found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np

from aim_fast.data.formats.listing import Clip, Labelled
from aim_fast.data.video.picture import display_size
from aim_fast.data.video.probe import MISSING, Probe
from aim_fast.errors import abridged

__all__ = ["Index", "Row"]

_PROBED = tuple(field.name for field in fields(Probe))


@dataclass(frozen=True, slots=True)
class Row(Labelled):
    """One clip: annotation and probe together (see ``aim_fast.data.video.probe.Probe`` for the units)."""

    path: str
    label: int
    id: str
    frames: int
    height: int
    width: int
    codec: str
    pixel_format: str
    rotation: int
    size: int
    mtime_ns: int
    error: str | None
    aspect: float = 1.0
    seekable: bool = True
    special: str = ""
    others: tuple[int, ...] = ()

    @classmethod
    def of(cls, clip: Clip | Row, probe: Probe) -> Row:
        """The row of a clip, in whose file a probe found this."""
        probed = {name: getattr(probe, name) for name in _PROBED}
        return cls(clip.path, clip.label, clip.id, others=clip.others, **probed)

    @property
    def probe(self) -> Probe:
        """What is known of the file."""
        return Probe(**{name: getattr(self, name) for name in _PROBED})

    @property
    def healthy(self) -> bool:
        return self.error is None

    @property
    def display_size(self) -> tuple[int, int]:
        """(height, width) on a screen of square pixels, upright."""
        return display_size(self.height, self.width, self.aspect, self.rotation)

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) of the decoded pixels, upright."""
        return display_size(self.height, self.width, 1.0, self.rotation)

    @property
    def plain(self) -> bool:
        """Whether a decoder that knows ordinary files alone shows the file as a player does."""
        return self.rotation == 0 and self.pixel_format != "varying" and not self.special


@dataclass(frozen=True)
class Index:
    """All clips of one split, in the order of the annotations, with the class names by class id.

    ``multi_label``: whether a clip may have several labels, or none.

    ``notes`` are lines for the user about the annotations (see ``Listing``); they are not stored.
    """

    dataset: str
    split: str
    root: str
    classes: list[str]
    rows: list[Row]
    notes: tuple[str, ...] = field(default=(), compare=False)
    multi_label: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def healthy(self) -> np.ndarray:
        """int64 [n]: numbers of the rows that can be decoded."""
        return np.array([i for i, row in enumerate(self.rows) if row.healthy], np.int64)

    @cached_property
    def members(self) -> list[np.ndarray]:
        """Of each class, int64 [n]: numbers of its rows that can be decoded."""
        found: list[list[int]] = [[] for _ in self.classes]
        for number in self.healthy.tolist():
            for label in self.rows[number].labels:
                found[label].append(number)
        return [np.array(rows, np.int64) for rows in found]

    def targets(self, rows: Iterable[Row]) -> np.ndarray:
        """What rows are labelled as: int64 [n], or where clips may have several labels float32 [n, classes] of 0 and 1.

        A row without a label has -1, or no 1.
        """
        if not self.multi_label:
            return np.array([row.label for row in rows], np.int64)
        labels = [row.labels for row in rows]
        found = np.zeros((len(labels), len(self.classes)), np.float32)
        for target, one in zip(found, labels):
            target[list(one)] = 1
        return found

    @cached_property
    def missing(self) -> list[Row]:
        """Rows whose file is not there."""
        return [row for row in self.rows if row.error == MISSING]

    @cached_property
    def broken(self) -> list[Row]:
        """Rows whose file is there and cannot be used; ``error`` says why."""
        return [row for row in self.rows if not row.healthy and row.error != MISSING]

    def _absent(self) -> list[str]:
        """Classes that no usable clip has, in a split that has labels."""
        counts = [len(rows) for rows in self.members]
        return [name for name, count in zip(self.classes, counts) if not count] if any(counts) else []

    def summary(self, named: int = 5) -> list[str]:
        """Lines to print: counts, lengths, sizes as shown, codecs, classes without a clip, ``named`` useless files."""
        good = [self.rows[i] for i in self.healthy]
        lengths = np.array([row.frames for row in good])
        lines = [
            f"{self.dataset} {self.split}: {len(good)} of {len(self)} clips can be used, {len(self.classes)} classes",
            f"frames {lengths.min()} to {lengths.max()}, median {int(np.median(lengths))}; "
            + _counted(("{1}x{0}".format(*row.display_size) for row in good), 3)
            + "; "
            + _counted((row.codec for row in good), 4),
        ]
        if self.multi_label:
            labels = [len(row.labels) for row in good]
            mean = sum(labels) / len(good)
            lines.append(f"{mean:.2f} labels a clip, at most {max(labels)}; {labels.count(0)} clips have none")
        lines += self.notes
        if special := [row.special for row in good if row.special]:
            lines.append(f"left to PyAV: {len(special)} files ({_counted(special, 4)})")
        if absent := self._absent():
            names = abridged(absent, named or len(absent))
            lines.append(f"classes without a clip: {len(absent)} of {len(self.classes)}, {names}")
        for what, rows in (("broken", self.broken), ("missing", self.missing)):
            if rows:
                lines.append(f"{what}: {len(rows)} file{'s' if len(rows) > 1 else ''}")
                lines += [f"  {row.path}" + (f": {row.error}" if what == "broken" else "") for row in rows[:named]]
                if named and len(rows) > named:
                    lines.append(f"  and {len(rows) - named} more")
        return lines


def _counted(values: Iterable[str], most: int) -> str:
    return abridged([f"{name} ({count})" for name, count in Counter(values).most_common()], most)
