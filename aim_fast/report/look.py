"""``look.html``: what a data set holds before anything is trained on it, on one page that needs no network.

In: the indices of its splits. Out: a :class:`Look`: clips, lengths, sizes, rates and codecs of each split, clips of
each class, clips that are (nearly) the same, files that cannot be used; as text, as JSON, and as a page with frames of
some clips of every class.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from aim_fast.data.index.glance import Glance, glances
from aim_fast.data.index.near_copies import NearCopy, near_copies
from aim_fast.data.index.rows import Index, Row
from aim_fast.files import write_whole
from aim_fast.printable import printable

__all__ = ["Look", "look_at"]

_SHEETS = 480  # clips shown on a page, over all classes
_OF_EACH = 6
_COPIES, _FAULTS = 100, 50  # most on the page
_IN_TEXT = 10


@dataclass(frozen=True)
class Look:
    """The splits of one data set, each with a glance at every clip that can be decoded, in the order of ``rows``."""

    dataset: str
    root: str
    indices: list[Index]
    rows: list[tuple[str, Row]]  # (split, row)
    glances: list[Glance]
    copies: list[NearCopy]

    def split(self, index: Index) -> dict[str, Any]:
        """What there is to say of one split."""
        own = [(row, seen) for (split, row), seen in zip(self.rows, self.glances) if split == index.split]
        frames = [row.frames for row, _ in own]
        seconds = [row.frames / seen.rate for row, seen in own if seen.rate]
        sizes = Counter(f"{row.display_size[1]}x{row.display_size[0]}" for row, _ in own)
        rates = Counter(f"{seen.rate:.4g}" for _, seen in own if seen.rate)
        return {
            "split": index.split,
            "clips": len(index),
            "usable": len(own),
            "frames": _spread(frames),
            "seconds": _spread(seconds),
            "sizes": dict(sizes.most_common()),
            "rates": dict(rates.most_common()),
            "codecs": dict(Counter(row.codec for row, _ in own).most_common()),
            "bytes": sum(max(row.size, 0) for row, _ in own),
        }

    @property
    def classes(self) -> list[dict[str, Any]]:
        """One entry a class: its name and how many usable clips each split has of it."""
        counts = Counter((split, label) for split, row in self.rows for label in row.labels)
        names = self.indices[0].classes
        splits = [index.split for index in self.indices]
        return [
            {"class": printable(name), **{split: counts[split, label] for split in splits}}
            for label, name in enumerate(names)
        ]

    @property
    def faults(self) -> list[dict[str, str]]:
        """Files that cannot be used, and why."""
        rows = [(index.split, row.path, row.error or "") for index in self.indices for row in index.rows if row.error]
        rows += [(split, row.path, seen.error) for (split, row), seen in zip(self.rows, self.glances) if seen.error]
        return [{"split": split, "file": printable(path), "fault": printable(fault)} for split, path, fault in rows]

    @property
    def notes(self) -> list[str]:
        """What the annotations and files have that is no clip."""
        return [f"{index.split}: {printable(note)}" for index in self.indices for note in index.notes]

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """Clips that show the same, those of two splits first, then those of two classes."""
        found = []
        for copy in self.copies:
            (one, first), (other, second) = self.rows[copy.first], self.rows[copy.second]
            found.append(
                {
                    "across_splits": one != other,
                    "two_classes": set(first.labels) != set(second.labels),
                    "splits": [one, other],
                    "files": [printable(first.path), printable(second.path)],
                    "share": round(copy.share, 3),
                    "bits": copy.distance,
                }
            )
        return sorted(found, key=lambda pair: (not pair["across_splits"], not pair["two_classes"]))

    def to_dict(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "root": printable(self.root),
            "splits": [self.split(index) for index in self.indices],
            "classes": self.classes,
            "near_copies": self.pairs,
            "faults": self.faults,
            "notes": self.notes,
        }

    def text(self) -> str:
        """Lines for a terminal."""
        lines = []
        for index in self.indices:
            facts = self.split(index)
            lines.append(f"{facts['split']}: {facts['usable']} of {facts['clips']} clips can be used")
            lines.append(f"  {_said(facts)}")
        splits = [index.split for index in self.indices]
        width = max([5, *(len(row["class"]) for row in self.classes)])
        lines.append(f"{'class':<{width}}" + "".join(f"  {split:>10}" for split in splits))
        lines += [
            f"{row['class']:<{width}}" + "".join(f"  {row[split]:>10}" for split in splits) for row in self.classes
        ]
        if (balance := self.balance) is not None:
            lines.append(balance)
        pairs = self.pairs
        across = sum(pair["across_splits"] for pair in pairs)
        lines.append(f"nearly the same: {len(pairs)} pairs, {across} across splits")
        lines += [f"  {_pair(pair)}" for pair in pairs[:_IN_TEXT]]
        faults = self.faults
        lines.append(f"cannot be used: {len(faults)} files")
        lines += [f"  {fault['file']}: {fault['fault']}" for fault in faults[:_IN_TEXT]]
        lines += [f"  and {len(some) - _IN_TEXT} more" for some in (faults,) if len(some) > _IN_TEXT]
        return "\n".join([*lines, *self.notes])

    @property
    def balance(self) -> str | None:
        """The largest class of the first split beside the smallest; None where there are no classes."""
        first = self.indices[0].split
        counts = sorted(((row[first], row["class"]) for row in self.classes), reverse=True)
        if not counts:
            return None
        (most, large), (least, small) = counts[0], counts[-1]
        times = f", {most / least:.3g} times" if least else ""
        return f"{first}: {most} clips of {large}, {least} of {small}{times}"

    def write_page(self, path: Path) -> None:
        """Writes the page, whole."""
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        folder = files("aim_fast.report")
        style = (folder / "page.html").read_text().partition("<style>")[2].partition("</style>")[0]
        facts = [self.split(index) for index in self.indices]
        sheets = defaultdict(list)
        for (split, row), seen in zip(self.rows, self.glances):
            for label in row.labels if seen.sheet else ():
                sheets[label].append((f"{printable(row.id)} ({split})", seen.sheet))
        faults, pairs = self.faults, self.pairs
        content = {
            "style": style,
            "title": printable(f"{self.dataset}: {Path(self.root).absolute().name}"),
            "splits": [(one, _said(one)) for one in facts],
            "balance": self.balance,
            "classes": [(row, sheets[label]) for label, row in enumerate(self.classes)],
            "pairs": [(_pair(pair), pair["across_splits"] or pair["two_classes"]) for pair in pairs[:_COPIES]],
            "more_pairs": max(len(pairs) - _COPIES, 0),
            "faults": faults[:_FAULTS],
            "more_faults": max(len(faults) - _FAULTS, 0),
            "notes": self.notes,
        }
        template = environment.from_string((folder / "look.html").read_text())
        write_whole(path, template.render(content))


def look_at(indices: Sequence[Index], workers: int = 0, done: Callable[[int, int], None] | None = None) -> Look:
    """Decodes some frames of every usable clip of some splits, in processes, and compares them; ``done`` is called with
    (clips looked at, all of them)."""
    rows = [(index.split, index.rows[number]) for index in indices for number in index.healthy]
    of_each = min(max(_SHEETS // max(len(indices[0].classes), 1), 1), _OF_EACH)
    shown: set[int] = set()
    counts: Counter[int] = Counter()
    for place, (_, row) in enumerate(rows):
        if any(counts[label] < of_each for label in row.labels):
            counts.update(row.labels)
            shown.add(place)
    found = glances([row for _, row in rows], shown, workers, done)
    copies = near_copies([seen.hashes for seen in found])
    return Look(indices[0].dataset, indices[0].root, list(indices), rows, found, copies)


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Least, middle and most of some numbers; nothing where there are none."""
    if not values:
        return {}
    return {"least": min(values), "median": float(np.median(values)), "most": max(values)}


def _said(facts: dict[str, Any]) -> str:
    parts = []
    for name in ("frames", "seconds"):
        if spread := facts[name]:
            least, median, most = (f"{spread[key]:.4g}" for key in ("least", "median", "most"))
            parts.append(f"{name} {least} to {most}, median {median}")
    for name in ("sizes", "rates", "codecs"):
        common = list(facts[name].items())[:3]
        others = len(facts[name]) - len(common)
        unit = " fps" if name == "rates" else ""
        if common:
            said = ", ".join(f"{value}{unit} ({count})" for value, count in common)
            parts.append(said + (f" and {others} more" if others > 0 else ""))
    return "; ".join([*parts, f"{facts['bytes'] / 2**20:.1f} MiB"])


def _pair(pair: dict[str, Any]) -> str:
    splits = " and ".join(dict.fromkeys(pair["splits"]))
    classes = ", two classes" if pair["two_classes"] else ""
    return f"{' = '.join(pair['files'])} ({splits}{classes}; {100 * pair['share']:.0f} % of the frames)"
