"""The model that a recipe asks for: which of its fields the model takes, and the model with its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from aim_fast.errors import UsageError
from aim_fast.models.heads.class_texts import read_templates
from aim_fast.models.identity import Identity
from aim_fast.models.loading import load_weights
from aim_fast.models.record import Clips
from aim_fast.models.registry import argument_names, create_model, find_entry
from aim_fast.training.devices import Place
from aim_fast.training.part_groups import PART_FIELDS
from aim_fast.training.recipe import Recipe, group_of
from aim_fast.training.recipe_file import default_recipe, other_method, own_fields
from aim_fast.training.trained_model import TrainedModel, move_to_place

# Recipe fields that a model may have an argument for.
MODEL_FIELDS = (PART_FIELDS | Clips.options().keys()) - {"model", "weights", "weights_key", "head", "method"}


def model_options(recipe: Recipe, num_classes: int, class_names: Sequence[str] = ()) -> dict[str, Any]:
    """The overrides that a recipe passes to create_model: those of its fields that the model takes."""
    options = {"num_frames": recipe.data.frames, "num_classes": num_classes, "class_names": list(class_names)}
    options |= {name: value for name, value in recipe.fields().items() if name in MODEL_FIELDS and value is not None}
    options["head"] = recipe.model.head
    if recipe.model.method:
        options["method"] = recipe.model.method
    if recipe.text_head.templates:
        options["templates"] = read_templates(recipe.text_head.templates)
    known = [*argument_names(recipe.model.model, recipe.model.head, recipe.model.method), "head", "method"]
    return {name: value for name, value in options.items() if name in known}


def check_model_fields(model: str, typed: Iterable[str], head: str = "linear", method: str | None = None) -> None:
    """Raises UsageError for a recipe field, typed on the command line, that ``model`` has nothing to do with."""
    known = argument_names(model, head, method)
    if odd := [name for name in typed if name in MODEL_FIELDS and name not in known]:
        options = ", ".join("--" + name.replace("_", "-") for name in odd)
        raise UsageError(f"model {model} takes no {options}: leave it out, or take another --model, --method or --head")


def check_given_fields(source: str | Path | None, recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Raises UsageError for a field of another method's that was ``given``, or that a recipe file sets itself.

    What the file extends, shipped recipes and those of runs hold fields of all methods.
    """
    asked = recipe.model
    check_model_fields(asked.model, given, asked.head, asked.method)
    if given.keys() & {"model", "method", "head"}:  # the file's own is put on another
        return
    known = argument_names(asked.model, asked.head, asked.method)
    for name, setting in own_fields(source).items():
        if name in MODEL_FIELDS and name not in known:
            under = f"method {asked.method}" if asked.method else f"model {asked.model}"
            raise UsageError(
                f"{setting.where}: {name} is a field of {group_of(name, setting.where)}, which {under} does not take: "
                "leave it out, or name its own method"
            )


def borrowed_from(source: str | Path | None, recipe: Recipe) -> str | None:
    """A line for who trains by the recipe of another method: its rates and batch were not chosen for theirs."""
    if source is None:
        return None
    asked = recipe.model
    method = find_entry(asked.model, asked.head, asked.method).method
    if (other := other_method(source, method)) is None:
        return None
    own = default_recipe(recipe.data.dataset, asked.model, recipe.data.frames, method)
    if own == other[0]:
        return None
    line = f"recipe {other[0]} is of {other[1]}: {method} trains with its rates, batch and augmentation"
    return line if other_method(own, method) else f"{line}; {own} is of {method}"


def build_model(recipe: Recipe, classes: Sequence[str], place: Place) -> TrainedModel:
    """The recipe's model with its trunk's weights, on the place's device and its trunk in the place's precision.

    ``classes`` are the names of the data set's classes. Initial values are a function of the recipe's seed.
    """
    torch.manual_seed(recipe.run.seed)
    model = create_model(recipe.model.model, **model_options(recipe, len(classes), classes))
    if recipe.data.cache_layers:
        model.store_layers(recipe.data.cache_layers)
    report = load_weights(model, recipe.model.weights, seed=recipe.run.seed, key=recipe.model.weights_key)
    lines = [*report.lines, *move_to_place(model, place)]
    identity = Identity(recipe.model.model, model.config, list(classes), report.sha256, report.source)
    return TrainedModel(model, identity, recipe, report.source, lines)
