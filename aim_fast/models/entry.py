"""What a model's name stands for: a trunk, a method and a head, and the arguments in which they are not as usual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aim_fast.models.record import Record
from aim_fast.models.video_model import VideoModel


class Entry(NamedTuple):
    """A model's class, its arguments that differ from their defaults, and which shipped recipes it takes.

    ``recipes`` stands in the names of these: ``k400_l14_8f``, ``ssv2_l14_32f``, ``finetune_l14`` are of "l14". A trunk
    of frames is put under the method and the head of these names; any other class has a record of its own, or, where
    it is one class for many networks, that of ``record``.
    """

    model: type[VideoModel]
    arguments: Mapping[str, Any]
    recipes: str = "b16"
    method: str = "aim"
    head: str = "linear"
    record: type[Record] | None = None
