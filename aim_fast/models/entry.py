"""What a model's name stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aim_fast.models.video_model import VideoModel


class Entry(NamedTuple):
    """A model's class, the arguments in which it differs from the class's defaults, and which shipped recipes it takes.

    ``recipes`` stands in the names of these: ``k400_l14_8f``, ``ssv2_l14_32f``, ``finetune_l14`` are of "l14".
    """

    model: Callable[..., VideoModel]
    arguments: Mapping[str, Any]
    recipes: str = "b16"
