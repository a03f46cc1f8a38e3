"""Which members of a tar are one sample, whatever its writer took for the key of a name with several dots.

WebDataset's key ends at the first dot of the base name, so that ``v.1.mp4`` and ``v.2.mp4`` would be two videos of the
sample ``v``; many writers mean the samples ``v.1`` and ``v.2``. Here a video's key is its name up to the last dot, and
its label the ``.cls`` or ``.json`` of that key. A video that has none takes that of a longer or shorter name, as
``x.cls`` or ``x.label.cls`` for ``x.video.mp4``, where no other video could have it.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aim_fast.errors import DataError

__all__ = ["LABELS", "REPAIR", "group", "label_in", "parts_of", "read_facts", "stem"]

LABELS = (".cls", ".json")
REPAIR = "give every sample a key of its own and write the shard again"


def stem(name: str) -> str:
    """A member's name without its extension."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.rpartition(".")[0]


def parts_of(name: str) -> Iterator[str]:
    """The name and what is before each dot of its base name, the longest first."""
    folder, slash, base = name.rpartition("/")
    parts = base.split(".")
    return (folder + slash + ".".join(parts[:count]) for count in range(len(parts), 0, -1))


def read_facts(shard: Path, name: str, text: str) -> dict[str, Any]:
    """The object in a ``.json``; DataError where it is none."""
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise DataError(f"{shard}: {name} is not valid JSON ({reason}); write the shard again") from None
    if not isinstance(facts, dict):
        raise DataError(f"{shard}: {name} is no object; expected one with a label")
    return facts


def label_in(facts: Mapping[str, Any]) -> Any:
    """What a ``.json`` gives as its label; None where it gives none."""
    return next((facts[word] for word in ("label", "cls") if facts.get(word) is not None), None)


def _labels(name: str, text: str) -> bool:
    """Whether a member gives a label, and is no ``.json`` about something else."""
    if not name.lower().endswith(".json"):
        return bool(text)
    with contextlib.suppress(ValueError, RecursionError):
        facts = json.loads(text)
        return isinstance(facts, dict) and label_in(facts) not in (None, "")
    return False


def group(shard: Path, videos: Mapping[str, str], texts: Mapping[str, str]) -> tuple[dict[str, list[str]], set[str]]:
    """Names of the texts of each video, its label's first, and the keys that samples have by either rule.

    Args:
        videos: names by key. texts: what ``.cls`` and ``.json`` members hold, by name.

    Raises:
        DataError: a label that several videos could have, several that a video could have, or one without a video.
    """
    own: dict[str, list[str]] = {key: [] for key in videos}
    free = []
    for name in sorted(texts, key=lambda name: not name.lower().endswith(".cls")):
        if (key := stem(name)) in own:
            own[key].append(name)
        else:
            free.append(name)
    roots = set(videos)
    labels = [name for name in free if _labels(name, texts[name])]
    if labels:
        roots |= _give(shard, own, labels, texts)
        inner = {part for key in videos for part in parts_of(key)}
        lost = [name for name in labels if roots.isdisjoint(parts_of(stem(name))) and stem(name) not in inner]
        if lost:
            raise DataError(
                f"{shard}: sample {stem(lost[0])} has a label but no video ({len(lost)} such); write the shard again"
            )
    return own, roots


def _give(shard: Path, own: dict[str, list[str]], labels: list[str], texts: Mapping[str, str]) -> set[str]:
    """Gives ``labels`` to the videos that have none; returns the keys by which they share them."""
    without = [key for key, names in own.items() if not any(_labels(name, texts[name]) for name in names)]
    under: dict[str, list[str]] = defaultdict(list)
    rivals: dict[str, list[str]] = defaultdict(list)
    for name in labels:
        for part in parts_of(stem(name)):
            under[part].append(name)
    for key in without:
        for part in parts_of(key):
            rivals[part].append(key)
    shared, tails = {}, set()
    for key in without:
        part = next((part for part in parts_of(key) if under.get(part)), "")
        if not part:
            continue
        if len(rivals[part]) > 1:
            one, other = rivals[part][:2]
            raise DataError(
                f"{shard}: sample {part} has {len(rivals[part])} videos, {one} and {other} among them, and the label "
                f"{under[part][0]}; {REPAIR}"
            )
        fitting = [name for name in under[part] if stem(name) == part] or under[part]
        cls = [name for name in fitting if name.lower().endswith(".cls")]
        name = (cls or fitting)[0]
        if len(cls or fitting) > 1:
            raise DataError(f"{shard}: sample {part} has several labels, {name} and {(cls or fitting)[1]}; {REPAIR}")
        if part not in (key, stem(name)):  # names that part ways may be of two samples that lack the other half
            tails.add((key.removeprefix(part), stem(name).removeprefix(part)))
        shared[key] = part, name
    if len(tails) > 1 or any(tail[1:].isdecimal() for pair in tails for tail in pair):
        key, (part, name) = next((key, at) for key, at in shared.items() if at[0] not in (key, stem(at[1])))
        raise DataError(f"{shard}: sample {key} has no .cls or .json of its name; is {name} its label? {REPAIR}")
    for key, (_, name) in shared.items():
        own[key].insert(0, name)
    return {part for part, _ in shared.values()}
