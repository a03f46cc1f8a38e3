"""Which state dict of a checkpoint is taken: what was trained, its moving average, a teacher, an encoder.

    {"model": {...}, "model_ema": {...}, "optimizer": {...}}   ->  model, saying that there is model_ema as well

``--weights-key`` names another: an entry (``model_ema``, ``state_dict.model``), or the prefix of the names of a part
(``base_encoder``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from aim_fast.errors import WeightsError
from aim_fast.models.weights.names import PLAIN, choose, trunk_roots, unwrap

_FUSION = "fusion_model_state_dict"  # where ActionCLIP's authors keep what reads the towers
_DEEPEST = 3  # entries within entries


class Entry(NamedTuple):
    """A state dict, and what a reader should know of the choice."""

    tensors: dict[str, Tensor]
    lines: tuple[str, ...] = ()


def take_entry(content: Any, key: str | None, where: str) -> Entry:
    """The state dict in what a file holds: with ``key`` that one, else the one with an image trunk.

    Of several with a trunk the usual one is taken, and the line says so. Raises WeightsError where there is none, where
    an entry of it is no tensor, and where ``key`` names none.
    """
    entries = dict(_entries(content))
    if key:
        return Entry(_named(entries, key, where))
    if not entries:
        raise WeightsError(f"weights file {where} holds no state dict: expected tensors by name")
    trunks = [place for place, state in entries.items() if _roots(state)]
    place = choose(trunks or list(entries), f"weights file {where}")
    lines: tuple[str, ...] = ()
    if len(trunks) > 1:
        others = ", ".join(sorted(set(trunks) - {place}))
        taken = f"{place or 'the first'} is taken (--weights-key chooses another)"
        lines = (f"{where} holds {place or 'a trunk'} and {others}: {taken}",)
    elif place.rpartition(".")[2] not in PLAIN:
        lines = (f"of {where} its entry {place} is taken",)
    beside = {f"fusion.{unwrap(name)}": one for name, one in entries.get(_FUSION, {}).items()} if trunks else {}
    return Entry(_checked(entries[place], where) | _checked(beside, where), lines)


def _entries(content: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping of names to tensors, by its place."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    if any(isinstance(value, Tensor) for value in content.values()):
        yield place, content
    for name, value in content.items():
        if isinstance(name, str):
            yield from _entries(value, f"{place}.{name}" if place else name, depth + 1)


def _roots(state: Mapping[str, Any]) -> list[str]:
    return trunk_roots(unwrap(name) for name in state if isinstance(name, str))


def _named(entries: Mapping[str, Mapping[str, Any]], key: str, where: str) -> dict[str, Tensor]:
    """The entry of a name, or what lies below it in the usual entry."""
    key = key.rstrip(".:")
    if key in entries:
        return _checked(entries[key], where)
    for place in sorted(entries, key=lambda place: place not in PLAIN):
        below = f"{key.removeprefix(f'{place}.')}."
        names = {name: unwrap(name) for name in entries[place] if isinstance(name, str)}
        if found := {short: entries[place][name] for name, short in names.items() if short.startswith(below)}:
            return {name.removeprefix(below): t for name, t in _checked(found, where).items()}
    places = [f"{place}.{root}".strip(".") for place, state in entries.items() for root in ["", *_roots(state)]]
    known = ", ".join(sorted({place for place in places if place}))
    raise WeightsError(
        f"{where} has no entry {key!r}: it holds {known}"
        if known
        else f"{where} has no entries: leave --weights-key out"
    )


def _checked(state: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"weights file {where} holds no state dict: its entry {name!r} is no tensor")
    return dict(state)
