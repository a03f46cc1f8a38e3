"""What a model's name stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aim_fast.models.video_model import VideoModel


class Entry(NamedTuple):
    """A model's class and the arguments in which it differs from the class's defaults."""

    model: Callable[..., VideoModel]
    arguments: Mapping[str, Any]
