"""A run's folder: what may be written into it, and the recipe that it keeps.

RUN/recipe.yaml     the recipe, every field, files named from the root
RUN/metrics.jsonl   a line a step or validation, see ``metrics``
RUN/checkpoints/    ``last`` and ``best``, see ``checkpoint``
"""

from __future__ import annotations

import os
from pathlib import Path

from aim_fast.data.storage.address import is_address
from aim_fast.errors import CheckpointError, UsageError
from aim_fast.files import check_unlocked
from aim_fast.training.checkpoint import find_checkpoint
from aim_fast.training.metrics import METRICS
from aim_fast.training.recipe import Recipe, recipe_differences
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.recipe_groups import AUTO, BALANCED

RECIPE = "recipe.yaml"


def check_output(recipe: Recipe, resume: bool) -> Path:
    """The run's folder, found fit to be written to (or to be resumed) before any work starts."""
    if not recipe.run.output:
        raise UsageError("no folder for the run: give --output DIR")
    folder = Path(recipe.run.output)
    check_unlocked(folder)
    holds_run = any((folder / name).exists() for name in (RECIPE, METRICS, "checkpoints"))
    if resume:
        if not (folder / RECIPE).is_file():
            find_checkpoint(folder, "last")
            raise CheckpointError(f"{folder}: holds no {RECIPE} to resume by; give the --output of a training run")
        saved = load_recipe(folder / RECIPE, {})
        if saved.data.data_root is None:
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


def resumed(recipe: Recipe) -> Recipe:
    """The recipe of a run that goes on: a batch size that is to be found was found at its start."""
    saved = saved_recipe(recipe.run.output or "") if recipe.optimisation.batch_size == AUTO else None
    return recipe.replace(batch_size=saved.optimisation.batch_size) if saved else recipe


def absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with its files named from the root, so that a run can be opened from any folder."""
    weights = recipe.model.weights
    if weights and Path(weights).expanduser().exists():
        weights = str(Path(weights).expanduser().absolute())
    names, fields = ("data_root", "features", "cache_features", "shot_list", "templates", "teacher"), recipe.fields()
    paths = {name: fields[name] for name in names if fields[name]}
    if (classes := fields["classes"]) and not classes.isdigit():
        paths["classes"] = classes
    if fields["class_weights"] not in (None, BALANCED):
        paths["class_weights"] = fields["class_weights"]
    paths = {name: value for name, value in paths.items() if not is_address(value)}
    absolute = {name: str(Path(value).expanduser().absolute()) for name, value in paths.items()}
    return recipe.replace(weights=weights, **absolute)


def saved_recipe(path: str | Path) -> Recipe | None:
    """The recipe in the folder of the run that ``path`` (a run, or a checkpoint in it) belongs to, if there is one."""
    folder = run_folder(path)
    return load_recipe(folder / RECIPE, {}) if folder else None


def run_folder(path: str | Path) -> Path | None:
    """The folder of the run that ``path`` (a run, or a checkpoint in it) belongs to, if there is one."""
    path = Path(path)
    return next((folder for folder in (path, *path.absolute().parents[:3]) if (folder / RECIPE).is_file()), None)
