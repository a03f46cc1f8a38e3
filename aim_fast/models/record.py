"""A model's arguments as records: frozen dataclasses, of a trunk, a method, a head and its clips.

An argument is written once, as a field, with its type and default. What ``create_model`` takes, what a run saves and
what is told of a checkpoint are read from the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from aim_kernels.choices import BlockBackend, Memory

RUNNING = {"running": True}  # metadata of a field that changes no value: how a model runs, not what it is


@dataclass(frozen=True)
class Record:
    """Arguments that belong together. No two records of one model have a field of the same name."""

    @classmethod
    def names(cls, running: bool = True) -> list[str]:
        """Of the fields, or without those that say how a model runs."""
        return [one.name for one in fields(cls) if running or not one.metadata.get("running")]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What :meth:`of` fills in."""
        return {one.name: one.default for one in fields(cls)}

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """The record of those ``arguments`` that it has a field for."""
        return cls(**{name: arguments[name] for name in cls.names() if name in arguments})


@dataclass(frozen=True)
class Clips(Record):
    """Frames of a clip, and how the model's blocks run.

    ``backend``: "fused", or "reference" for plain torch; ``memory``: what the blocks keep for backward, "fast",
    "balanced" or "lean". No value changes with these two.
    """

    num_frames: int = 8
    backend: BlockBackend = field(default="fused", metadata=RUNNING)
    memory: Memory = field(default="fast", metadata=RUNNING)
