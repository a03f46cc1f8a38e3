"""Command-line options made from the fields of a recipe, so that every command names them alike."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

import click

from aim_fast.training.recipe import FIELDS, Recipe

RUN_FIELDS = ("device", "precision", "workers")
_TYPES = typing.get_type_hints(Recipe)


def recipe_options(names: Iterable[str] = tuple(FIELDS)) -> Callable[[Callable], Callable]:
    """A decorator that adds one option for each of these recipe fields; an option that is not typed is None."""

    def add(function: Callable) -> Callable:
        for name in reversed(list(names)):
            function = _option(name)(function)
        return function

    return add


def _option(name: str) -> Callable[[Callable], Callable]:
    flag, text = "--" + name.replace("_", "-"), FIELDS[name].metadata["help"]
    kind = _TYPES[name]
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    metavar = "LIST" if typing.get_origin(kind) is tuple else {str: "TEXT", int: "N", float: "X"}[kind]
    return click.option(flag, name, default=None, metavar=metavar, help=text)


def typed(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were typed."""
    return {name: value for name, value in options.items() if value is not None}
