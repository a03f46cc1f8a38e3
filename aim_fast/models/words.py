"""A model as the command line takes it: ``NAME,key=value,key=[a,b]``."""

from __future__ import annotations

import re
from collections.abc import Mapping


def split_words(text: str) -> list[str]:
    """The pieces between commas that stand in no brackets."""
    return re.split(r",(?![^\[\]]*\])", text)


def written(name: str, parts: Mapping[str, str]) -> str:
    """A combination: ``NAME,method=probe,head=attentive``."""
    return ",".join([name, *(f"{key}={word}" for key, word in parts.items())])
