"""What every format makes of its annotation files: the clips of a split with their labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Self

from aim_fast.data.formats.gaps import Gaps
from aim_fast.data.video.source import same_bytes
from aim_fast.errors import DataError, abridged

__all__ = ["UNLABELLED", "Clip", "Entry", "Labelled", "Listing", "each_once"]

UNLABELLED = -1


class Labelled:
    """What has a ``label``, ``UNLABELLED`` for none, and behind it, ascending, ``others`` where clips have several."""

    __slots__ = ()
    label: int
    others: tuple[int, ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """All of its classes."""
        return (self.label, *self.others) if self.label >= 0 else ()

    def labelled(self, labels: Iterable[int]) -> Self:
        """The same, of these classes."""
        first, *others = sorted(set(labels)) or [UNLABELLED]
        return replace(self, label=first, others=tuple(others))  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class Clip(Labelled):
    """One video of a split: where it is, its class (``UNLABELLED`` where the split has no answers), its name, and its
    further classes."""

    path: str
    label: int
    id: str
    others: tuple[int, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class Entry(Clip):
    """A clip and where the annotations name it, such as "train.csv line 3"."""

    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Listing:
    """The clips of one split, in the order of the annotations, and the class names by class id.

    ``notes`` are lines for the user: what of the annotations is no clip, or counts once. ``gaps`` finds what is there
    and no clip is made of. ``multi_label``: whether a clip may have several labels, or none.
    """

    classes: list[str]
    clips: list[Clip]
    notes: tuple[str, ...] = field(default=(), compare=False)
    gaps: Callable[[], Gaps] = field(default=Gaps, compare=False)
    multi_label: bool = False


def each_once(listing: Listing, what: str, multi_label: bool = False) -> Listing:
    """The listing with every video once, where it comes first; the others are named in its notes.

    With ``multi_label`` it then has the labels of all its entries.

    One video is one path, however it is spelled, or what two samples of one name hold, byte for byte. Raises DataError
    for a video under two labels, with the places of both. ``what`` names the split in messages.
    """
    first: dict[str, Clip] = {}
    named: dict[str, list[Clip]] = {}
    kept: list[Clip] = []
    again, contrary = [], []
    labels: dict[int, set[int]] = {}  # by the place of a clip among those that are kept
    places: dict[int, int] = {}
    for clip in listing.clips:
        key = os.path.abspath(clip.path).replace("//", "/")
        known = first.setdefault(key, clip)
        if known is clip:
            namesakes = named.setdefault(clip.id, [])
            known = next((other for other in namesakes if same_bytes(other.path, clip.path)), clip)
            namesakes.append(clip)
        if known is clip:
            places[id(clip)] = len(kept)
            kept.append(clip)
            continue
        if multi_label:
            place = places[id(known)]
            labels.setdefault(place, set(kept[place].labels)).update(clip.labels)
            continue
        twice = f"{clip.id} ({_place(known)} and {_place(clip)})"
        again.append(twice)
        if known.label != clip.label:
            names = (listing.classes[label] if label >= 0 else "none" for label in (known.label, clip.label))
            contrary.append(twice[:-1] + ": " + " and ".join(map(repr, names)) + ")")
    if contrary:
        raise DataError(
            f"{what}: {len(contrary)} {'video has two labels' if len(contrary) == 1 else 'videos have two labels'}, "
            f"{abridged(contrary, 3)}; leave one line, of the right label, a video"
        )
    if labels:
        kept = [clip.labelled(labels[place]) if place in labels else clip for place, clip in enumerate(kept)]
        return replace(listing, clips=kept)
    if not again:
        return listing
    lines = f"listed again, counted once: {len(again)} of {len(listing.clips)} entries, {abridged(again, 3)}"
    return replace(listing, clips=kept, notes=(*listing.notes, lines))


def _place(clip: Clip) -> str:
    return clip.place if isinstance(clip, Entry) else clip.path
