"""A model's arguments as records: frozen dataclasses, of a trunk, a method, a head and its clips. Imports no torch.

An argument is written once, as a field, with its type, its default and what else is known of it (:class:`About`). What
``create_model`` takes and refuses, what a run saves, the options of the command line with their help, and what is told
of a checkpoint are read from the fields.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from aim_fast.models.argument_checks import LIMITS, check_value
from aim_kernels.choices import BlockBackend, Memory


@dataclass(frozen=True)
class About:
    """What is known of an argument beside its type and default."""

    help: str = ""  # of the option that it has on the command line and in recipes; without a help it has none
    limits: Mapping[str, float] = field(default_factory=dict)  # ge, gt, le, lt
    shared: bool = False  # an option of models in general, not of the one part
    unset: bool = False  # an option that is nothing when it is not given: the model's own value is taken then
    written: Any = None  # the option's type, where it is another than the argument's
    told: bool = True  # whether it leaves a trace in a trained model's tensors
    structure: bool = True  # whether it makes another model, or chooses what trains: published figures are of one
    alike: bool = False  # whether a model's blocks stay alike with it, whatever its value
    running: bool = False  # how a model runs, not what it is


def argument(default: Any, help: str = "", **about: Any) -> Any:
    """A field of a record; ``about`` are fields of :class:`About`, and its limits by their names."""
    limits: dict[str, float] = {key: about.pop(key) for key in LIMITS if key in about}
    return field(default=default, metadata={"about": About(help, limits, **about)})


def like(record: type[Record], name: str, **default: Any) -> Any:
    """The field of that name of another record, perhaps with another ``default``."""
    found = record.__dataclass_fields__[name]
    return field(**{"default": found.default, **default}, metadata=found.metadata)


@dataclass(frozen=True)
class Record:
    """Arguments that belong together. No two records of one model have a field of the same name."""

    heading: ClassVar[str] = ""  # of its options; its name when not given
    alike: ClassVar[bool] = False  # whether a model's blocks stay alike with all of its fields

    @classmethod
    def names(cls, running: bool = True) -> list[str]:
        """Of the fields, or without those that say how a model runs."""
        return [name for name, about in cls.about().items() if running or not about.running]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What :meth:`of` fills in."""
        return {one.name: one.default for one in fields(cls)}

    @classmethod
    @functools.cache
    def about(cls) -> dict[str, About]:
        """What is known of each field."""
        found = {one.name: one.metadata.get("about", About()) for one in fields(cls)}
        return {name: replace(about, alike=about.alike or cls.alike) for name, about in found.items()}

    @classmethod
    def options(cls) -> dict[str, Field[Any]]:
        """The fields that have a help: its own before those of what it derives from."""
        names = dict.fromkeys(name for base in cls.__mro__ for name in vars(base).get("__annotations__", ()))
        found, about = cls.__dataclass_fields__, cls.about()
        return {name: found[name] for name in names if name in about and about[name].help}

    @classmethod
    @functools.cache
    def kinds(cls) -> dict[str, Any]:
        """The type of each field."""
        return {name: kind for name, kind in typing.get_type_hints(cls).items() if name in cls.__dataclass_fields__}

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """The record of those ``arguments`` that it has a field for.

        Raises ValueError for a word that is none of the field's, and for a number out of its limits.
        """
        taken = {name: arguments[name] for name in cls.names() if name in arguments}
        for name, value in taken.items():
            check_value(name, value, cls.kinds()[name], cls.about()[name].limits)
        return cls(**taken)


@dataclass(frozen=True)
class Clips(Record):
    """Frames of a clip, and how the model's blocks run.

    ``backend``: "fused", or "reference" for plain torch; ``memory``: what the blocks keep for backward, "fast",
    "balanced" or "lean". No value changes with these two.
    """

    alike: ClassVar[bool] = True

    num_frames: int = 8
    backend: BlockBackend = argument("fused", "fused operators, or reference: plain PyTorch", running=True)
    memory: Memory = argument("fast", "what is kept for backward: fast, balanced or lean; slower, less", running=True)
