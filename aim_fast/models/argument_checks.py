"""What an argument of a model may be: one of its type's words, a number within limits. Imports no torch."""

from __future__ import annotations

import operator
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

_LISTS = (tuple, Sequence, Collection)
LIMITS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
_CLOSES = {"le": "]", "lt": ")"}


def item_kind(kind: Any) -> Any:
    """Of the items of a list's type, also where one word may stand for the list; None of any other type."""
    options = (kind, *typing.get_args(kind)) if typing.get_origin(kind) is not Literal else ()
    lists = [one for one in options if typing.get_origin(one) in _LISTS]
    return typing.get_args(lists[0])[0] if lists else None


def check_value(name: str, value: Any, kind: Any, limits: Mapping[str, float]) -> None:
    """Raises ValueError for a word that is none of the type's, and for a number out of ``limits``: ge, gt, le, lt."""
    item = item_kind(kind)
    word_of = kind if item is None else item
    if typing.get_origin(word_of) is Literal:
        for word in [value] if item is None or isinstance(value, str) else value:
            if word not in typing.get_args(word_of):
                raise ValueError(f"{name} {word!r} is none of {', '.join(map(str, typing.get_args(word_of)))}")
    number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if value is None or (number and _within(value, limits)) or not limits:
        return
    if len(limits) == 2:
        (low, least), (high, most) = sorted(limits.items())
        raise ValueError(f"{name} {value} is not in {'[' if low == 'ge' else '('}{least:g}, {most:g}{_CLOSES[high]}")
    ((key, limit),) = limits.items()
    what = "a whole number" if kind is int else "a number"
    raise ValueError(f"{name} must be {what} {LIMITS[key]} {limit:g}, not {value!r}")


def _within(value: float, limits: Mapping[str, float]) -> bool:
    return all(getattr(operator, key)(value, limit) for key, limit in limits.items())


def check_sizes(**sizes: int) -> None:
    """Raises ValueError where a size is no whole number of at least 1."""
    for name, value in sizes.items():
        check_value(name, value, int, {"ge": 1})


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """``mean`` and ``std`` as tuples of plain numbers; raises ValueError where they normalise no RGB pixel."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std take three numbers each, std above 0, not {mean!r} and {std!r}")
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)
