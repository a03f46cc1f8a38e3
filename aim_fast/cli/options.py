"""Command-line options made from the fields of a recipe, so that every command names them alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import click

from aim_fast.models.words import split_words
from aim_fast.training.part_groups import UNTOLD
from aim_fast.training.recipe import FIELDS, GROUPS, group_of
from aim_fast.training.recipe_file import read_fields, shipped_recipes, typed, with_trunk
from aim_fast.training.recipe_group import is_switch, kind_of

__all__ = ["RUN_FIELDS", "RecipeCommand", "recipe_options", "trunk_option", "typed", "with_trunk", "words_of"]

RUN_FIELDS = ("device", "precision", "workers")


def recipe_options(
    names: Iterable[str] = tuple(FIELDS),
    defaults: Literal["recipe", "features", "run", "source", "demo", "fixed"] = "recipe",
) -> Callable[[Callable], Callable]:
    """A decorator that adds one option for each of these recipe fields; an option that is not typed is None.

    ``defaults`` says where its value comes from then, for the help: a recipe that is chosen (by ``features`` for
    PromptCLIP), the run at hand, the checkpoint or run that is converted, the shipped recipe ``demo``, or no recipe.
    """

    def add(function: Callable) -> Callable:
        for name in sorted(names, key=list(FIELDS).index, reverse=True):
            function = _option(name, defaults)(function)
        return function

    return add


class RecipeCommand(click.Command):
    """A command whose help has the recipe's options below the headings of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                sections.setdefault(getattr(parameter, "heading", "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class _RecipeOption(click.Option):
    """An option whose help ends with the value that its field has when it is not typed."""

    def __init__(self, *arguments: Any, defaults: str, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.defaults = defaults
        group = GROUPS[group_of(str(self.name), "option")]
        self.heading = group.model_config.get("title", group.__name__)

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        if text := _default_text(str(self.name), self.defaults):
            extra["default"] = text
        return extra


class _SwitchOption(_RecipeOption):
    """``--name`` or ``--name WORD``, and ``--no-name`` for the word ``off``."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.secondary_opts = [f"--no-{self.opts[0][2:]}"]

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        parser.add_option(obj=self, opts=self.secondary_opts, dest=self.name, action="store_const", const="off")

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (f"{self.opts[0]} {self.metavar} / {self.secondary_opts[0]}", record[1])


def _default_text(name: str, defaults: str) -> str:
    fixed = name in ("device", "precision", "output")  # never those of a recipe
    if defaults == "run" and not fixed:
        return "the run's"
    default = FIELDS[name].default
    if defaults == "source":
        return "what RUN|CHECKPOINT says" + (f", else {default}" if name in UNTOLD and default is not None else "")
    if defaults == "features":
        defaults, default = "recipe", "promptclip_b16" if name == "model" else default
    if defaults == "demo":
        default = read_fields("demo")[name].value if name in read_fields("demo") else default
    text = "" if default is None else str(default)
    if isinstance(default, tuple):
        text = ",".join(map(str, default)) or "none"
    elif isinstance(default, bool):
        text = "yes" if default else "no"
    if defaults == "recipe" and not fixed and name in _set_by_shipped_recipes():
        return f"chosen by recipe, else {text}" if text else "chosen by recipe"
    return text


@functools.cache
def _set_by_shipped_recipes() -> frozenset[str]:
    return frozenset().union(*(read_fields(name) for name in shipped_recipes() if name != "demo"))


def _option(name: str, defaults: str) -> Callable[[Callable], Callable]:
    flag, (kind, listed) = "--" + name.replace("_", "-"), kind_of(FIELDS[name])
    fixed: dict[str, Any] = {"cls": _RecipeOption, "defaults": defaults, "default": None}
    fixed["help"] = FIELDS[name].description
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, **fixed)
    if is_switch(FIELDS[name]):  # a word, or nothing for on
        words = "|".join(get_args(FIELDS[name].annotation))
        return click.option(
            flag, name, is_flag=False, flag_value="on", metavar=f"[{words}]", **fixed | {"cls": _SwitchOption}
        )
    metavar = "LIST" if listed else {str: "TEXT", int: "N", float: "X"}[kind]
    return click.option(flag, name, metavar=metavar, **fixed)


run_code_option = click.option(
    "--run-code",
    is_flag=True,
    default=None,
    help="open an export of format aoti, whose machine code then runs unchecked: one that you made",
)

trunk_option = click.option(
    "--trunk", metavar="NAME", help="a trunk, in place of --model: vit_b16_clip, timm:NAME, open_clip:NAME …"
)


def words_of(values: Iterable[str]) -> list[str]:
    """The words of an option that is repeated or takes a list, each once; ``NAME,key=value`` is one word."""
    words: list[str] = []
    for piece in (piece.strip() for value in values for piece in split_words(value)):
        if "=" in piece and words:
            words[-1] += f",{piece}"
        elif piece:
            words.append(piece)
    return list(dict.fromkeys(words))
