"""Which methods and heads go with a trunk, and what the others lack there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from aim_fast.errors import UsageError
from aim_fast.models.heads import HEADS, OF_METHODS
from aim_fast.models.promptclip import PromptCLIP
from aim_fast.models.registry import check_part, find_entry, list_methods

Parts = dict[str, str]  # a method, a head or both, as overrides of create_model


class Refusal(NamedTuple):
    """A combination that cannot be, and what is missing."""

    parts: Parts
    reason: str


def combinations(
    name: str, methods: Sequence[str] = (), heads: Sequence[str] = ()
) -> tuple[list[Parts], list[Refusal]]:
    """The combinations of a model's name with ``methods`` and ``heads`` that exist, each once, and those that do not.

    The name's own method or head is taken where none is named. Raises UsageError for a name, method or head that there
    is not.
    """
    find_entry(name)
    for method in methods:
        check_part("method", method)
    for head in heads:
        check_part("head", head)
    found: list[Parts] = []
    refused = []
    for words in itertools.product(methods or [""], heads or [""]):
        parts = {key: word for key, word in zip(("method", "head"), words) if word}
        try:
            entry = find_entry(name, parts.get("head"), parts.get("method"))
        except UsageError as error:
            refused.append(Refusal(parts, str(error)))
            continue
        if entry.model is PromptCLIP or entry.method in OF_METHODS:  # with a head of their own
            parts.pop("head", None)
        if parts not in found:
            found.append(parts)
    return found, refused


def parts_of(name: str) -> dict[str, list[str]]:
    """The ``methods`` that a model's trunk can be put under, and the ``heads`` that those methods can have on it."""
    methods = [parts["method"] for parts in combinations(name, list_methods())[0]]
    heads = [parts["head"] for parts in combinations(name, (), list(HEADS))[0] if "head" in parts]
    return {"methods": methods, "heads": heads}
