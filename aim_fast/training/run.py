"""A run's folder: what may be written into it, and how its model is opened again for evaluation and prediction."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aim_fast.data.index.selection import read_lines
from aim_fast.errors import CheckpointError, UsageError
from aim_fast.files import check_unlocked
from aim_fast.models.class_embeddings import read_templates
from aim_fast.models.registry import argument_names, create_model
from aim_fast.models.weights import WeightsReport, load_weights, trunk_names
from aim_fast.training.checkpoint import (
    ADAPTERS,
    Checkpoint,
    Description,
    copy_values,
    find_checkpoint,
    read_checkpoint,
)
from aim_fast.training.devices import Place, single_place
from aim_fast.training.metrics import METRICS
from aim_fast.training.recipe import Recipe, coerce, load_recipe, recipe_differences
from aim_fast.training.trained_file import UNTOLD, is_numbered, name_classes, read_trained
from aim_fast.training.wise_ft import check_wise_ft, interpolate_weights
from aim_kernels import hold_trunk

RECIPE = "recipe.yaml"
# Recipe fields that a model may have an argument for.
MODEL_FIELDS = (
    *("num_tadapter", "adapter_scale", "adapter_ratio", "adapters", "adapter_layers", "temporal_place", "tune"),
    *("drop_path", "drop_path_mode", "head_dropout", "backend", "memory", "img_size", "activation"),
    "published_freeze",
    "templates",
    *("prompt_prefix", "prompt_postfix", "temporal_layers", "max_names"),
)


@dataclass(frozen=True)
class Run:
    """A trained model, opened: in eval mode on its device, with its class names and the recipe that it came from."""

    model: Any  # of the registry: AIMViTCLIP
    classes: list[str]
    recipe: Recipe
    source: Path  # the checkpoint folder, or the published checkpoint
    lines: list[str]  # what is worth saying about its weights
    trunk_sha256: str  # of the frozen trunk


def check_output(recipe: Recipe, resume: bool) -> Path:
    """The run's folder, found fit to be written to (or to be resumed) before any work starts."""
    if not recipe.output:
        raise UsageError("no folder for the run: give --output DIR")
    folder = Path(recipe.output)
    check_unlocked(folder)
    holds_run = any((folder / name).exists() for name in (RECIPE, METRICS, "checkpoints"))
    if resume:
        if not (folder / RECIPE).is_file():
            find_checkpoint(folder, "last")
            raise CheckpointError(f"{folder}: holds no {RECIPE} to resume by; give the --output of a training run")
        saved = load_recipe(folder / RECIPE, {})
        if saved.data_root is None:
            raise CheckpointError(f"{folder}: was converted and holds no optimiser, so it cannot be resumed")
        if differences := recipe_differences(saved, recipe):
            raise CheckpointError(
                f"{folder}: --resume needs the recipe it was started with, but {'; '.join(differences)}: "
                "leave these options out, or give another --output"
            )
    elif holds_run:
        raise CheckpointError(f"{folder}: already holds a run; add --resume to go on with it, or give another --output")
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: cannot be written to (it is a file); give another --output")
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{folder}: cannot be written to (no permission on {parent}); give another --output")
    return folder


def absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with its files named from the root, so that a run can be opened from any folder."""
    weights = recipe.weights
    if weights and Path(weights).expanduser().exists():
        weights = str(Path(weights).expanduser().absolute())
    fields = ("data_root", "features", "cache_features", "shot_list", "classes", "templates")
    paths = {name: getattr(recipe, name) for name in fields}
    paths = {name: value for name, value in paths.items() if value and not (name == "classes" and value.isdigit())}
    absolute = {name: str(Path(value).expanduser().absolute()) for name, value in paths.items()}
    return recipe.replace(weights=weights, **absolute)


def model_options(recipe: Recipe, num_classes: int, class_names: Sequence[str] = ()) -> dict[str, Any]:
    """The overrides that a recipe passes to create_model: those of its fields that the model takes."""
    options = {"num_frames": recipe.frames, "num_classes": num_classes, "class_names": list(class_names)}
    options |= {name: getattr(recipe, name) for name in MODEL_FIELDS if getattr(recipe, name) is not None}
    options["head"] = recipe.head
    if recipe.head == "text":
        options["templates"] = read_templates(recipe.templates)
    known = argument_names(recipe.model, recipe.head)
    return {name: value for name, value in options.items() if name in known}


def check_model_fields(model: str, typed: Iterable[str], head: str = "linear") -> None:
    """Raises UsageError for a recipe field, typed on the command line, that `model` has nothing to do with."""
    known = argument_names(model, head)
    if odd := [name for name in typed if name in MODEL_FIELDS and name not in known]:
        options = ", ".join("--" + name.replace("_", "-") for name in odd)
        raise UsageError(f"model {model} takes no {options}: leave it out, or take another --model")


def build_model(recipe: Recipe, classes: Sequence[str], place: Place) -> tuple[Any, WeightsReport]:
    """The recipe's model with its trunk's weights, on the place's device and its trunk in the place's precision.

    ``classes`` are the names of the data set's classes.

    Initial values are a function of the recipe's seed.
    """
    torch.manual_seed(recipe.seed)
    model = create_model(recipe.model, **model_options(recipe, len(classes), classes))
    report = load_weights(model, recipe.weights, seed=recipe.seed)
    return _on_device(model, place), report


def saved_recipe(path: str | Path) -> Recipe | None:
    """The recipe in the folder of the run that `path` (a run, or a checkpoint in it) belongs to, if there is one."""
    path = Path(path)
    for folder in (path, *path.absolute().parents[:3]):
        if (folder / RECIPE).is_file():
            return load_recipe(folder / RECIPE, {})
    return None


def open_run(path: str | Path, overrides: dict[str, Any], place: Place, classes: list[str] | None = None) -> Run:
    """Opens a run's folder (its best checkpoint), a checkpoint folder, or a published AIM checkpoint file.

    `overrides` are recipe fields typed on the command line; `--weights` names the frozen trunk where it has moved.
    `classes` are the names for a published checkpoint, which holds none. An override `class_names` is a file of other
    classes to score, one a line, by a model that reads names.
    """
    path, overrides = Path(path), dict(overrides)
    if names := overrides.get("class_names"):
        others = read_lines(names, "class names")
        run = open_run(path, {k: v for k, v in overrides.items() if k != "class_names"}, place, classes)
        run.model.set_classes(others)
        return dataclasses.replace(run, classes=others)
    share = overrides.pop("wise_ft", None)
    if path.is_file() and path.name != ADAPTERS:
        if share is not None:
            raise UsageError(
                f"{path}: --wise-ft needs the frozen weights, which a file does not hold; give a run's folder"
            )
        return _open_file(path, overrides, place, classes)
    model, description, report = restore_run(path, overrides, share)
    recipe = saved_recipe(path) or load_recipe(None, {"model": description.model})
    recipe = recipe.replace(**{name: coerce(name, value, "command line") for name, value in overrides.items()})
    folder = find_checkpoint(path, "best")
    return Run(_ready(model, place), description.classes, recipe, folder, report.lines, report.sha256)


def restore_run(
    path: str | Path, overrides: dict[str, Any], wise_ft: float | None = None
) -> tuple[Any, Description, WeightsReport]:
    """The model of a run's best checkpoint, or of a checkpoint folder, on the CPU in fp32, and what it is.

    `overrides`: recipe fields as typed; `weights` names the trunk where it has moved. `wise_ft`: share of the trained
    tensors in a mean with their frozen values, see training/wise_ft.py.
    """
    path = Path(path)
    folder = find_checkpoint(path, "best")
    checkpoint = read_checkpoint(folder)
    _refuse_other_structure(path, checkpoint, overrides)
    recipe = saved_recipe(folder)
    weights = overrides.get("weights") or (recipe and recipe.weights) or checkpoint.description.weights
    model, report = _restore(checkpoint, weights, recipe.seed if recipe else 0, wise_ft)
    return model, checkpoint.description, report


def open_named_run(path: str | Path, overrides: dict[str, Any], place: Place) -> Run:
    """:func:`open_run` where no data set names the classes; raises UsageError for a run in which nobody did."""
    run = open_run(path, overrides, place)
    if not run.classes:
        raise UsageError(f"{path}: names no classes to tell apart; give --class-names FILE, one a line")
    return run


def load_run(path: str | Path, device: str = "auto", precision: str = "auto", **overrides: Any) -> Run:
    """A trained run's model in Python: `load_run("runs/ssv2").model(frames)` gives logits, `.classes` names them."""
    return open_run(path, overrides, single_place(device, precision))


def _refuse_other_structure(path: Path, checkpoint: Checkpoint, overrides: dict[str, Any]) -> None:
    """A run says itself what its model is: options that say otherwise are not passed over."""
    saved = {**checkpoint.description.options, "frames": checkpoint.description.options["num_frames"]}
    saved["model"] = checkpoint.description.model
    for name in ("model", "frames", *UNTOLD):
        if name in overrides and coerce(name, overrides[name], "command line") != saved.get(name):
            raise UsageError(
                f"--{name.replace('_', '-')} {overrides[name]}: {path} was trained with {saved.get(name)}; "
                "leave it out (it is for published checkpoints, which do not say theirs)"
            )


def _ready(model: Any, place: Place) -> Any:
    """The model on its device for evaluation, its trunk in the precision that it is computed in."""
    return _on_device(model, place).eval()


def _on_device(model: Any, place: Place) -> Any:
    """The model on its device, its trunk in the precision that it is computed in, its classes read there."""
    model = hold_trunk(model.to(place.device), place.dtype)
    if model.takes_class_names and model.class_names:
        model.set_classes(model.class_names)
    return model


def _restore(
    checkpoint: Checkpoint, weights: str, seed: int, wise_ft: float | None = None
) -> tuple[Any, WeightsReport]:
    description = checkpoint.description
    torch.manual_seed(seed)
    model = create_model(description.model, **description.options)
    if trunk_names(model) <= checkpoint.tensors.keys():  # the trunk was trained: the checkpoint holds it
        report = WeightsReport(str(checkpoint.folder), "run", description.trunk_sha256)
    else:
        report = load_weights(model, weights, seed=seed)
    if report.sha256 != description.trunk_sha256:
        raise CheckpointError(
            f"{checkpoint.folder / ADAPTERS}: was trained on another trunk than {weights}; give its --weights "
            f"(SHA-256 {description.trunk_sha256[:12]}…, this one has {report.sha256[:12]}…)"
        )
    trainable = dict(model.trainable_parameters())
    if odd := sorted(set(trainable) ^ set(checkpoint.tensors)):
        raise CheckpointError(f"{checkpoint.folder / ADAPTERS}: does not fit {description.model}: {', '.join(odd)}")
    tensors = checkpoint.tensors
    if wise_ft is not None:
        check_wise_ft(model, wise_ft, checkpoint.folder)
        tensors = interpolate_weights(trainable, tensors, wise_ft)
        report.lines.append(f"weights are {wise_ft:g} adapted + {1 - wise_ft:g} frozen (WiSE-FT)")
    copy_values(trainable, tensors)
    return model, report


def _open_file(path: Path, overrides: dict[str, Any], place: Place, classes: list[str] | None) -> Run:
    model, description, report = read_trained(path, overrides)
    if classes is not None and is_numbered(description.classes):
        if model.takes_class_names:
            model.set_classes(classes)
            description = dataclasses.replace(description, classes=list(classes))
        else:
            description = name_classes(description, classes, path)
    recipe = load_recipe(None, {"weights": str(path), **overrides, "model": description.model})
    taken = {
        name: description.options[name] for name in ("num_tadapter", "adapter_scale") if name in description.options
    }
    recipe = recipe.replace(frames=model.num_frames, **taken)
    return Run(_ready(model, place), description.classes, recipe, path, report.lines, report.sha256)
