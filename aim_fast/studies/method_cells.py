"""The rows of a comparison that trains: methods on one trunk, and other models beside them, each by its own recipe.

    aim, lora,lora_rank=4          a method, on the trunk
    attentive                      a head over the frozen trunk: the method probe under it
    torchvision:mvit_v2_s, mvit    a name of create_model, or the first of those that begin so
    uniformer_b,weights=random     any field of a recipe can be said of one row

An option that was typed goes to the rows whose model takes it. A model that stands on the trunk's own sizes takes the
trunk's weights, any other its recipe's, or random ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aim_fast.errors import AimFastError, UsageError, nearest
from aim_fast.models.combinations import parts_of
from aim_fast.models.heads import HEADS
from aim_fast.models.libraries import NETWORKS
from aim_fast.models.published import datasets, find_published
from aim_fast.models.registry import argument_names, create_model, find_entry, full_name, list_methods, list_models
from aim_fast.models.words import named, written
from aim_fast.studies.cells import Cell
from aim_fast.studies.contenders import dataset_classes
from aim_fast.training.recipe import FIELDS, Recipe
from aim_fast.training.recipe_file import default_recipe, load_recipe, model_settings, other_method, recipe_mark
from aim_fast.training.recipe_model import MODEL_FIELDS, model_options

_SIZES = ("patch_size", "embed_dim", "depth", "num_heads")


@dataclass(frozen=True)
class Budget:
    """What every row may spend: ``epochs``, or about so many ``hours``, or, with neither, its recipe's epochs."""

    epochs: int | None = None
    hours: float | None = None

    @classmethod
    def of(cls, text: str) -> Budget:
        """From ``published``, ``epochs=N`` or ``hours=H``. Raises UsageError for another."""
        if text == "published":
            return cls()
        kind, _, number = text.partition("=")
        if kind == "epochs" and number.isdecimal() and int(number):
            return cls(epochs=int(number))
        if kind == "hours" and re.fullmatch(r"\d*\.?\d+", number) and float(number):
            return cls(hours=float(number))
        raise UsageError(f"--budget {text!r} is none: write published, epochs=N or hours=H")


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe over ``epochs``; where they are fewer than its own, warm-up and drops of the rate keep their share."""
    optimisation = recipe.optimisation
    share = min(1.0, epochs / (optimisation.epochs or 1))
    drops = tuple(dict.fromkeys(max(1, round(drop * share)) for drop in optimisation.lr_drops))
    return recipe.replace(epochs=epochs, warmup_epochs=round(optimisation.warmup_epochs * share, 4), lr_drops=drops)


def method_cells(
    words: Sequence[str],
    fields: Mapping[str, Any],
    recipe: str | None,
    budget: Budget,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Recipe, list[Cell]]:
    """The recipe of the trunk alone, and the rows that ``words`` stand for.

    ``fields``: recipe fields as typed, of which ``model`` names the trunk; ``recipe``: one for all rows, in place of
    each one's own. Raises UsageError for all rows that cannot be, at once, before anything is trained.
    """
    base = _with_budget(load_recipe(recipe, fields), budget)
    fields = {**fields, **model_settings(fields.get("model", base.model.model))}
    cells: dict[str, Cell] = {}
    refused, taken = [], set()
    for word in dict.fromkeys(words):
        try:
            row = _row_fields(word, fields, say)
            cell = _cell(word, row, recipe, base, budget)
            if cell.key in cells:
                raise UsageError("its folder would be that of another row")
            cells[cell.key] = cell
            taken |= _taken_fields(row)
        except AimFastError as error:
            refused.append(f"{word}: {error}")
    odd = [name for name in fields if name in MODEL_FIELDS and name not in taken] if not refused else []
    refused += [f"--{name.replace('_', '-')}: no row takes it" for name in odd]
    if refused:
        raise UsageError(f"nothing is trained: {'; '.join(refused)}")
    return base, list(cells.values())


def methods_on(trunk: str, texts: bool) -> list[str]:
    """The methods that a trunk can be put under, and heads over it frozen; with ``texts`` those that read names too."""
    parts, found = parts_of(trunk), []
    rows = [(word, {"method": word}) for word in parts["methods"]]
    rows += [(word, {"method": "probe", "head": word}) for word in parts["heads"] if word != "linear"]
    for word, overrides in rows:
        with torch.device("meta"):
            if texts or not create_model(trunk, **overrides).takes_class_names:
                found.append(word)
    return found


def _row_fields(word: str, fields: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Of the typed fields those that go to a row, with what the row says itself."""
    name, settings = named(word)
    trunk, on_trunk = fields["model"], True
    if name in list_methods():
        own = {"model": trunk, "method": name}
    elif name in HEADS:
        own = {"model": trunk, "method": "probe", "head": name}
    else:
        model = _model_named(name, say)
        own, on_trunk = {"model": model}, _same_sizes(model, trunk)
    settings = {"frames" if key == "num_frames" else key: value for key, value in settings.items()}
    own |= {key: value for key, value in settings.items() if key in FIELDS}
    own["model"] = written(own["model"], {key: value for key, value in settings.items() if key not in FIELDS})
    known = argument_names(own["model"], own.get("head"), own.get("method"))
    typed = {
        key: value
        for key, value in fields.items()
        if not (key in MODEL_FIELDS and key not in known) and not (key == "weights" and not on_trunk)
    }
    return {**typed, **own}


def _taken_fields(row: Mapping[str, Any]) -> set[str]:
    return {name for name in row if name in MODEL_FIELDS}


def _model_named(name: str, say: Callable[[str], None]) -> str:
    """The name of create_model that a word is, or the first that begins so. Raises UsageError."""
    every = [*list_models(), *NETWORKS]
    bare = {one: one.partition(":")[2] or one for one in every}
    if ":" in name or full_name(name) in every:
        find_entry(name)
        return name
    same = [one for one in every if bare[one] == name]
    family = same or [one for one in every if bare[one].startswith(name)]
    if not family:
        known = [*list_methods(), *HEADS, *bare.values()]
        raise UsageError(f"no method, head or model of that name; {nearest(name, known)}")
    if not same:
        others = f", the first of {', '.join(family)}" if len(family) > 1 else ""
        say(f"{name}: {family[0]}{others}")
    return family[0]


def _same_sizes(model: str, trunk: str) -> bool:
    """Whether a model's image Transformer is the trunk, so that it takes its weights."""
    one, other = find_entry(model), find_entry(trunk)
    return [one.arguments.get(name) for name in _SIZES] == [other.arguments.get(name) for name in _SIZES]


def _cell(word: str, row: Mapping[str, Any], source: str | None, base: Recipe, budget: Budget) -> Cell:
    recipe = load_recipe(source, row)
    if recipe.model.weights is None and "weights" not in row and row["model"] != base.model.model:
        recipe = recipe.replace(weights="random")
    name = source or default_recipe(recipe.data.dataset, recipe.model.model, recipe.data.frames, recipe.model.method)
    recipe = _with_budget(recipe, budget)
    with torch.device("meta"):
        create_model(recipe.model.model, **model_options(recipe, 2, ["one", "two"]))
    ours = base.fields()
    changes = {key: value for key, value in recipe.fields().items() if value != ours[key]}
    other = other_method(name, find_entry(recipe.model.model, recipe.model.head, recipe.model.method).method)
    mark = f"{name}, {recipe_mark(name)}"
    mark += f" for {other[1]}" if other and mark.endswith("published") else ""
    mark += ", from random weights" if recipe.model.weights == "random" else ""
    return Cell(re.sub(r"[^\w.]+", "-", word).strip("-"), word, changes, _published(recipe), mark)


def _with_budget(recipe: Recipe, budget: Budget) -> Recipe:
    return recipe if budget.epochs is None else with_epochs(recipe, budget.epochs)


def _published(recipe: Recipe) -> float | None:
    dataset = recipe.data.dataset
    if dataset not in datasets():
        return None
    found = find_published(recipe.model.model, dataset, model_options(recipe, dataset_classes(dataset)))
    return found.top1 if found else None
