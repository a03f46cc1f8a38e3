"""Recipes from YAML: those shipped in ``aim_fast/training/recipes/``, a user's own, and the ``recipe.yaml`` of a run.

Each shipped recipe says of itself by ``origin`` whether it is published or ours; what it extends does not matter, and a
file of one's own is ours. A file has its fields below their groups,
or beside each other without groups as earlier files have them, and may say ``extends: NAME`` and hold only what
differs. Options typed on the command line win over the file.

    extends: ssv2_b16_8f
    optimisation:
      lr: 1.0e-3

A model's name may say fields of its own after it: ``torchvision:mvit_v2_b,frames=16,drop_path=0.1``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from aim_fast.errors import UsageError, nearest
from aim_fast.models.record import Clips
from aim_fast.models.words import named, written
from aim_fast.training.part_groups import PART_FIELDS
from aim_fast.training.recipe import FIELDS, GROUPS, Recipe, coerce, group_of

RECIPES = Path(__file__).parent / "recipes"
# What the names of shipped recipes begin with, by data set.
_DATA = {
    "ssv1": "ssv2",
    "ssv2": "ssv2",
    "diving48": "diving48",
    "kinetics400": "k400",
    "kinetics600": "k400",
    "kinetics700": "k700",
}
# Fields that a model's name can give.
_OF_MODEL = (PART_FIELDS | Clips.options().keys() | {"frames"}) - {"model", "weights", "weights_key"}


ORIGINS = ("published", "ours")


class Setting(NamedTuple):
    """A field's value, and where it was given."""

    value: Any
    where: str


class _File(NamedTuple):
    """A file's path, what it sets itself, what it extends and where it says so, and one of ORIGINS."""

    path: Path
    own: dict[str, Setting]
    parent: str | None
    at: str
    origin: str


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(source: str | Path | None, overrides: Mapping[str, Any]) -> Recipe:
    """A recipe from a file or shipped name (None: chosen by data set, model and frames), with ``overrides`` on top."""
    typed = fields_of(overrides, "command line")
    if source is None:
        choosing = ("dataset", "model", "frames", "method")
        source = default_recipe(*(typed[name].value if name in typed else None for name in choosing))
    return _recipe(read_fields(source) | typed)


def recipe_of(content: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from what a file holds of it, with groups or without. Raises UsageError."""
    return _recipe(fields_of(content, where))


def _recipe(settings: Mapping[str, Setting]) -> Recipe:
    places = {name: setting.where for name, setting in settings.items()}
    return Recipe.of({name: setting.value for name, setting in settings.items()}, places)


def default_recipe(dataset: str | None, model: str | None, frames: int | None, method: str | None = None) -> str:
    """Name of the shipped recipe that fits what was asked for: the published one where there is one.

    A method has its own, that of Kinetics where there is none of the data set. Else the model's entry under ``method``
    names the family of its recipes; without a model that of the default one is taken. Raises UsageError for an unknown
    model, and for a method that it cannot be put under.
    """
    family, own = "b16", 8
    if model or method:
        from aim_fast.models.composition import arguments_of  # imports torch
        from aim_fast.models.registry import find_entry

        entry = find_entry(model or FIELDS["model"].default, method=method)
        family, own = entry.recipes, arguments_of(entry)["num_frames"]
    data, known = _DATA.get(dataset or ""), shipped_recipes()
    published = [f"{data}_{family}_{count}f" for count in (frames, own, 8, 32)] + [f"{data}_{family}"]
    if method and not family.startswith("demo"):  # its own, whatever the trunk
        sizes = [f"{data}_{method}_{family}_{count}f" for count in (frames, own, 8, 32)]
        published = [f"{data}_{method}", *sizes, f"k400_{method}", *published]
    return next(name for name in (*published, f"finetune_{family}", family) if name in known)


def recipe_mark(source: str | Path) -> str:
    """``published`` or ``ours``, as a shipped recipe says of itself; ``ours`` for a file of one's own."""
    return _read(source).origin if str(source) in shipped_recipes() else "ours"


def other_method(source: str | Path, method: str) -> tuple[str, str] | None:
    """The recipe, ``source`` or what a file of one's own extends, that is of another method than ``method``, and which.

    None where the settings of that method's training are taken from no other.
    """
    from aim_fast.models.registry import find_entry  # imports torch

    place: str | Path | None = source
    while place is not None:
        said = {name: setting.value for name, setting in read_fields(place).items()}
        found = find_entry(said.get("model", FIELDS["model"].default), method=said.get("method")).method
        if found != method:
            return str(place), found
        place = None if str(place) in shipped_recipes() else _read(place).parent
    return None


def read_fields(source: str | Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Setting]:
    """The fields that a recipe file sets, its ``extends`` followed. ``source`` is a shipped name or a file."""
    path, own, parent, at, _ = _read(source)
    if parent and path in extended_by:
        raise UsageError(f"{at}: extends {parent}, which extends this file: end the circle")
    return (read_fields(parent, (*extended_by, path)) if parent else {}) | own


def own_fields(source: str | Path | None) -> dict[str, Setting]:
    """The fields that a file sets itself, not what it extends; none of a shipped recipe, and of a run's, which sets
    the fields of all methods."""
    if source is None or str(source) in shipped_recipes():
        return {}
    own = _read(source).own
    return own if len(own) < len(FIELDS) / 2 else {}


def _read(source: str | Path) -> _File:
    path = Path(source)
    if str(source) in shipped_recipes():
        path = RECIPES / f"{source}.yaml"
    elif not path.suffix and not path.is_file():
        raise UsageError(
            f"recipe {str(source)!r} is neither shipped nor a file; {nearest(path.name, shipped_recipes())}"
        )
    where = f"recipe {path}"
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}; give a readable YAML file or one of the shipped names") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not text; write one `field: value` a line") from None
    content = _read_mapping(text, where)
    at, parent = _place(where, content, "extends"), content.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise UsageError(f"{at}: extends is {parent!r}, not the name of a recipe or a file")
    said, origin = _place(where, content, "origin"), content.pop("origin", "ours")
    if origin not in ORIGINS:
        raise UsageError(f"{said}: origin is {origin!r}: write {' or '.join(ORIGINS)}")
    return _File(path, fields_of(content, where), parent, at, origin)


def fields_of(content: Mapping[str, Any], where: str) -> dict[str, Setting]:
    """Every field of a mapping, below its group or without one, in its type.

    Raises UsageError for an unknown group or field, for a field below another group than its own or given twice, and
    for a value that cannot be.
    """
    found: dict[str, Setting] = {}
    for key, value in content.items():
        at = _place(where, content, key)
        grouped = isinstance(value, dict) and (key in GROUPS or key not in FIELDS)
        if grouped and key not in GROUPS:
            raise UsageError(f"{at}: unknown group {key!r}; {nearest(str(key), GROUPS)}")
        if not grouped and key in GROUPS and key not in FIELDS:
            raise UsageError(f"{at}: {key} is a group: write its fields below it, one `field: value` a line")
        for name, one in value.items() if grouped else [(key, value)]:
            at = _place(at, value, name) if grouped else at
            name = "model" if name == "trunk" else name  # as on the command line
            if (group := group_of(str(name), at)) != key and grouped:
                raise UsageError(f"{at}: {name} is a field of {group}, not of {key}")
            if name in found:
                raise UsageError(f"{at}: {name} is given here and at {found[name].where.rpartition(', ')[2]}; keep one")
            found[name] = Setting(coerce(name, one, at), at)
    if "model" in found:
        model, at = found["model"]
        for name, value in model_settings(model).items():
            if name in found and name != "model":
                raise UsageError(f"{at}: {name} is given by {model}, and at {found[name].where} too; keep one")
            found[name] = Setting(coerce(name, value, at), at)
    return found


def model_settings(text: str) -> dict[str, Any]:
    """The recipe fields that ``NAME,key=value`` gives: the model, and what it says beside it.

    A setting that is no field, such as ``depth``, stays with the name. Raises UsageError for what is no setting.
    """
    name, settings = named(text)
    fields = {"frames" if key == "num_frames" else key: value for key, value in settings.items()}
    kept = {key: value for key, value in fields.items() if key not in _OF_MODEL}
    return {"model": written(name, kept), **{key: value for key, value in fields.items() if key in _OF_MODEL}}


def typed(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, which are not None, those that ``model`` says as ``NAME,key=value`` among them.

    A path stands for its text. Raises UsageError for an option that is given in both ways.
    """
    given = {name: value for name, value in options.items() if value is not None}
    fields = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in given.items()}
    said = model_settings(fields["model"]) if "model" in fields else {}
    if twice := [name for name in said if name in fields and name != "model"]:
        raise UsageError(f"--{twice[0].replace('_', '-')} and {fields['model']} both say {twice[0]}: keep one")
    return fields | said


def with_trunk(fields: dict[str, Any], trunk: str | None) -> dict[str, Any]:
    """The fields, with what ``--trunk`` names as the model. Raises UsageError where both are named."""
    if trunk and "model" in fields:
        raise UsageError("--trunk and --model both name what is trained: keep one")
    return typed(fields | {"model": trunk}) if trunk else fields


class _Mapping(dict[str, Any]):
    """A mapping of a YAML file, with the line, from 1, of each of its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


class _Loader(yaml.SafeLoader):
    """Reads mappings with their lines, and their keys as text. Raises UsageError for a key that is given twice."""

    def mapping(self, node: yaml.MappingNode) -> _Mapping:
        found = _Mapping()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                key.tag = "tag:yaml.org,2002:str"
            if (text := str(key.value)) in found.lines:
                raise UsageError(f"{text} is given at line {found.lines[text]} and at line {line}; keep one")
            found.lines[text] = line
        found.update({str(key): value for key, value in self.construct_mapping(node, deep=True).items()})
        return found


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.mapping)


def _place(where: str, mapping: Mapping[str, Any], key: Any) -> str:
    """``where``, with the line of a key in place of another's where it has one."""
    line = getattr(mapping, "lines", {}).get(str(key))
    return f"{where.partition(', line ')[0]}, line {line}" if line else where


def _read_mapping(text: str, where: str) -> _Mapping:
    """A YAML file's content. Raises UsageError with the line to be mended."""
    try:
        content = yaml.load(text, _Loader)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = f" at line {line}" if (line := _line_of(error)) else ""
        raise UsageError(f"{where}: not valid YAML{line}; write one `field: value` a line") from None
    if not isinstance(content, _Mapping):
        raise UsageError(f"{where}: holds no fields; write one `field: value` a line")
    return content


def _line_of(error: Exception) -> int | None:
    """The line, from 1, that a reader has to mend: where a quote or bracket was opened that is not closed, and where
    parsing stopped otherwise (a mapping as a whole begins at the first line, which tells nothing)."""
    problem, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    opened = context if "block mapping" not in (getattr(error, "context", None) or "") else None
    mark = opened or problem or context
    return mark.line + 1 if mark else None
