"""A trunk, a method and a head put together: the records that a model is made of, their arguments, and the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aim_fast.models.entry import Entry
from aim_fast.models.frame_model import FrameModel
from aim_fast.models.heads import ALL_HEADS
from aim_fast.models.methods import METHODS
from aim_fast.models.record import About, Clips, Record
from aim_fast.models.video_model import VideoModel


def records_of(entry: Entry) -> tuple[type[Record], ...]:
    """The kinds of records that the model is made of, in its order."""
    if issubclass(entry.model, FrameModel):
        return (entry.model.trunk_record, METHODS[entry.method], ALL_HEADS[entry.head], Clips)
    if entry.record is None:
        return (entry.model.record,)  # type: ignore[attr-defined]
    return (entry.record, *((ALL_HEADS[entry.head],) if entry.method == "probe" else ()))


def arguments_of(entry: Entry) -> dict[str, Any]:
    """Every argument of the model with its value when nothing else is asked."""
    found = {name: value for record in records_of(entry) for name, value in record.defaults().items()}
    usual = getattr(entry.model, "method_defaults", {})
    return found | {name: value for name, value in (*usual.items(), *entry.arguments.items()) if name in found}


def about_of(entry: Entry) -> dict[str, About]:
    """What is known of every argument."""
    return {name: about for record in records_of(entry) for name, about in record.about().items()}


def compose(entry: Entry, arguments: Mapping[str, Any]) -> VideoModel:
    """The model, with ``arguments`` over its own. Raises ValueError for values that make no model."""
    every = arguments_of(entry) | dict(arguments)
    return entry.model(*(record.of(every) for record in records_of(entry)))
