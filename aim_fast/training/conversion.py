"""Trained models from one form into another: published checkpoint, single file, run.

A run made from a checkpoint holds ``trunk.safetensors``, ``recipe.yaml`` and one checkpoint of the trained tensors;
it is evaluated and predicted with as any other. It has no optimiser, so it cannot be resumed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aim_fast.errors import UsageError
from aim_fast.files import replacing, write_whole
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weights import save_trunk
from aim_fast.training.checkpoint import ADAPTERS, Description, save_checkpoint
from aim_fast.training.recipe import FIELDS, load_recipe
from aim_fast.training.run import RECIPE, restore_run
from aim_fast.training.trained_file import is_numbered, read_trained, write_trained

TRUNK = "trunk.safetensors"


def convert(source: str, destination: str, fields: dict[str, Any], classes: str | None = None) -> list[str]:
    """Read the trained model at ``source``, write it to ``destination``, and give lines for a reader.

    ``source``: a run, a checkpoint folder in it, or a file. ``destination``: a name ending in ``.pth`` or ``.pt`` for
    the published names, ``.safetensors`` for bare ones, and any other for a run's folder. ``fields``: ``model``,
    ``weights`` and those that a file does not tell as typed; ``classes``: a file of class names, one a line or a JSON
    list. Raises AimFastError before anything is written where something is wrong.
    """
    path, target = Path(source), Path(destination)
    if target.exists():
        raise UsageError(f"{target}: is there already; name another destination")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.parent}; make it first")
    names = read_class_names(Path(classes)) if classes else None
    if path.is_file() and path.name != ADAPTERS:
        model, description, report = read_trained(path, fields, names)
        source_lines = report.lines
        if names is None and is_numbered(description.classes):
            what = "the data set's are scored" if model.takes_class_names else "they are numbered"
            source_lines = [*source_lines, f"{path} names no classes: {what}; --classes FILE gives names"]
    else:
        if names is not None:
            raise UsageError(f"{path}: is a run, which knows its classes; leave --classes out")
        model, description, report = restore_run(path, fields)
        source_lines = report.lines
    if target.suffix in (".pth", ".pt", ".safetensors"):
        write_trained(model, description, target)
        what = f"{'bare' if target.suffix == '.safetensors' else 'published'} names"
    else:
        _write_run(model, description, target)
        what = "a run"
    tensors = len(model.state_dict())
    return [
        *source_lines,
        f"{target}: {description.model}, {len(description.classes) or 'no'} classes, {tensors} tensors, {what}",
    ]


def read_class_names(path: Path) -> list[str]:
    """Class names, in the order of their numbers: a JSON list, a JSON object of name to number, or one name a line."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(
            f"{path}: cannot be read as class names ({reason}); give a text file, one name a line"
        ) from None
    if text.lstrip().startswith(("[", "{")):
        try:
            found = json.loads(text)
            names = (
                [str(name) for name in sorted(found, key=lambda n: int(found[n]))] if isinstance(found, dict) else found
            )
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path}: no JSON of class names ({error}); give a list, or one name a line") from None
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise UsageError(f"{path}: holds no class names, or one twice; give one name a line")
    return names


def _write_run(model: VideoModel, description: Description, folder: Path) -> None:
    told = {**description.options, "frames": model.num_frames, "model": description.model, "templates": None}
    known = {name: value for name, value in told.items() if name in FIELDS and value is not None}
    recipe = load_recipe(None, {"model": description.model})
    recipe = recipe.replace(**{name: tuple(v) if isinstance(v, list) else v for name, v in known.items()})
    trunk = folder.absolute() / TRUNK
    tensors = {name: parameter.detach() for name, parameter in model.trainable_parameters()}
    described = Description(
        description.model, description.options, description.classes, description.trunk_sha256, str(trunk)
    )
    try:
        with replacing(folder) as made:
            made.mkdir()
            save_trunk(model, made / TRUNK)
            write_whole(made / RECIPE, recipe.replace(weights=str(trunk)).to_yaml())
            save_checkpoint(made / "checkpoints", ("last", "best"), tensors, {"step": 0}, described)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); name another place") from None
