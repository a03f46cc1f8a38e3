"""A model as the command line takes it: ``NAME,key=value,key=[a,b]``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from aim_fast.errors import UsageError

# Argument names of the published configurations, and of options.
ALIASES = {
    "input_resolution": "img_size",
    "image_size": "img_size",
    "width": "embed_dim",
    "layers": "depth",
    "heads": "num_heads",
    "frames": "num_frames",
}


def split_words(text: str) -> list[str]:
    """The pieces between commas that stand in no brackets."""
    return re.split(r",(?![^\[\]]*\])", text)


def written(name: str, parts: Mapping[str, Any]) -> str:
    """A name with settings: ``NAME,method=probe,head=attentive``."""
    return ",".join([name, *(f"{key}={word}" for key, word in parts.items())])


def named(text: str) -> tuple[str, dict[str, Any]]:
    """The name, and the values of the settings after it by their arguments' names; ``none`` is an empty list.

    Raises UsageError for what is no setting, and for one given twice.
    """
    name, *settings = split_words(text)
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        key = ALIASES.get(key, key)
        try:
            found = [] if value == "none" else yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not value:
            raise UsageError(
                f"{text}: {setting!r} is no override: write NAME,key=value, such as num_frames=16, and a list in "
                "brackets, such as adapters=[spatial,joint]"
            )
        if key in values:
            raise UsageError(f"{text}: {key} is given twice, also as an alias: keep one")
        values[key] = found
    return name, values
