"""What every format makes of its annotation files: the clips of a split with their labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from aim_fast.data.formats.gaps import Gaps
from aim_fast.data.video.source import same_bytes
from aim_fast.errors import DataError, abridged

__all__ = ["UNLABELLED", "Clip", "Entry", "Listing", "each_once"]

UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Clip:
    """One video of a split: where it is, its class (``UNLABELLED`` where the split has no answers) and its name."""

    path: str
    label: int
    id: str


@dataclass(frozen=True, slots=True)
class Entry(Clip):
    """A clip and where the annotations name it, such as "train.csv line 3"."""

    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Listing:
    """The clips of one split, in the order of the annotations, and the class names by class id.

    ``notes`` are lines for the user: what of the annotations is no clip, or counts once. ``gaps`` finds what is there
    and no clip is made of.
    """

    classes: list[str]
    clips: list[Clip]
    notes: tuple[str, ...] = field(default=(), compare=False)
    gaps: Callable[[], Gaps] = field(default=Gaps, compare=False)


def each_once(listing: Listing, what: str) -> Listing:
    """The listing with every video once, where it comes first; the others are named in its notes.

    One video is one path, however it is spelled, or what two samples of one name hold, byte for byte. Raises DataError
    for a video under two labels, with the places of both. ``what`` names the split in messages.
    """
    first: dict[str, Clip] = {}
    named: dict[str, list[Clip]] = {}
    kept, again, contrary = [], [], []
    for clip in listing.clips:
        key = os.path.abspath(clip.path).replace("//", "/")
        known = first.setdefault(key, clip)
        if known is clip:
            namesakes = named.setdefault(clip.id, [])
            known = next((other for other in namesakes if same_bytes(other.path, clip.path)), clip)
            namesakes.append(clip)
        if known is clip:
            kept.append(clip)
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
    if not again:
        return listing
    lines = f"listed again, counted once: {len(again)} of {len(listing.clips)} entries, {abridged(again, 3)}"
    return replace(listing, clips=kept, notes=(*listing.notes, lines))


def _place(clip: Clip) -> str:
    return clip.place if isinstance(clip, Entry) else clip.path
