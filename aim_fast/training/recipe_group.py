"""A group of a recipe's fields: what is checked of each, and the field that a model's argument has in one.

What is refused raises pydantic's ``ValidationError``, of which :mod:`aim_fast.training.recipe` makes one line.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from aim_fast.models.argument_checks import item_kind
from aim_fast.models.record import Record


def refused(must: str, value: Any, name: str | None = None) -> PydanticCustomError:
    """What a check raises: ``value``, of field ``name`` where several are checked, ``must`` be otherwise."""
    return PydanticCustomError("must", "{must}", {"must": must, "value": value, **({"name": name} if name else {})})


def must(be: str, holds: Callable[[Any], Any]) -> AfterValidator:
    """A check of one field; ``be`` ends the sentence "... must be"."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise refused(be, value)
        return value

    return AfterValidator(check)


def kind_of(field: FieldInfo) -> tuple[type, bool]:
    """Of a field's values, or of the items of a list: int, float, bool or str; and whether it is a list."""
    kind: Any = field.annotation
    if types.NoneType in typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    listed = typing.get_origin(kind) is tuple
    if listed:
        kind = typing.get_args(kind)[0]
    return (str if typing.get_origin(kind) is Literal else kind), listed


def is_switch(field: FieldInfo) -> bool:
    """Whether ``on`` and ``off`` are among its words: YAML reads them as yes and no."""
    return {"on", "off"} <= set(typing.get_args(field.annotation))


def field(default: Any, help: str, **limits: float) -> Any:
    return Field(default, description=help, **limits)  # type: ignore[call-overload]


class Group(BaseModel):
    """Fields that belong together, each in its type, its choices and its range."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False, defer_build=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: Any) -> Any:
        """A list may be written ``a,b`` or ``none``, or be its only item; yes and no are on and off, and no numbers."""
        field = cls.model_fields[info.field_name]
        kind, listed = kind_of(field)
        if isinstance(value, bool) and is_switch(field):
            return "on" if value else "off"
        if listed and isinstance(value, str):
            value = [] if value.strip() in ("", "none") else [word.strip() for word in value.split(",")]
        elif listed and not isinstance(value, (list, tuple)):
            value = [] if value is None else [value]
        if kind is not bool and any(isinstance(one, bool) for one in (value if listed else [value])):
            raise PydanticCustomError("kind", "a yes or no")
        return value


def field_of(record: type[Record], name: str) -> tuple[Any, FieldInfo]:
    """Type and field of a record's argument, as a recipe and the command line take it."""
    about, default = record.about()[name], record.defaults()[name]
    kind = about.written or record.kinds()[name]
    if (item := item_kind(kind)) is not None:
        item = str if typing.get_args(item) and typing.get_origin(item) is not Literal else item
        once = typing.get_origin(kind) is Collection  # in no order
        kind = tuple[item, ...]  # type: ignore[valid-type]
        if once:
            kind = Annotated[kind, must("each named once", lambda words: len(set(words)) == len(words))]
        default = (default,) if isinstance(default, str) else tuple(default)
    if about.unset:
        kind, default = kind | None, None
    return kind, field(default, about.help, **about.limits)
