"""Trained models from one form into another: published checkpoint, single file, run.

A run made from a checkpoint holds ``trunk.safetensors``, ``recipe.yaml`` and one checkpoint of the trained tensors;
it is evaluated and predicted with as any other. It has no optimiser, so it cannot be resumed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from aim_fast.data.formats.annotation import class_name, decoded
from aim_fast.errors import UsageError
from aim_fast.files import replacing, write_whole
from aim_fast.models.frame_model import FrameModel
from aim_fast.models.heads.open_clip_text import tokenizer_files
from aim_fast.models.loading import save_trunk, trunk_sha256
from aim_fast.training.checkpoint import ADAPTERS, save_checkpoint
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.run import restore_run
from aim_fast.training.run_folder import RECIPE
from aim_fast.training.trained_file import MULTI_LABEL, fields_told, is_numbered, read_trained, write_trained
from aim_fast.training.trained_model import TrainedModel

TRUNK = "trunk.safetensors"


def convert(
    source: str, destination: str, fields: dict[str, Any], classes: str | None = None, merge: bool = False
) -> list[str]:
    """Read the trained model at ``source``, write it to ``destination``, and give lines for a reader.

    ``source``: a run, a checkpoint folder in it, or a file. ``destination``: a name ending in ``.pth`` or ``.pt`` for
    the published names, ``.safetensors`` for bare ones, and any other for a run's folder. ``fields``: ``model``,
    ``weights`` and those that a file does not tell as typed; ``classes``: a file of class names, one a line or a JSON
    list; ``merge``: with what its method added merged into the trunk. Raises AimFastError before anything is written
    where something is wrong.
    """
    path, target = Path(source), Path(destination)
    if target.exists():
        raise UsageError(f"{target}: is there already; name another destination")
    one_file = target.suffix in (".pth", ".pt", ".safetensors")
    if one_file and not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.parent}; make it first")
    names = read_class_names(Path(classes)) if classes else None
    if path.is_file() and path.name != ADAPTERS:
        trained = read_trained(path, fields, names)
        lines = list(trained.lines)
        if names is None and is_numbered(trained.classes):
            what = "the data set's are scored" if trained.model.takes_class_names else "they are numbered"
            lines.append(f"{path} names no classes: {what}; --classes FILE gives names")
    else:
        if names is not None:
            raise UsageError(f"{path}: is a run, which knows its classes; leave --classes out")
        trained = restore_run(path, fields)
        lines = list(trained.lines)
    if merge:
        trained = _merged(trained)
    if one_file:
        tokenizer = _missing_files(tokenizer_files(trained.model), target)
        write_trained(trained, target)
        _copy(tokenizer, target.parent)
        if tokenizer:
            lines.append(f"{target.parent}: the tokenizer too, by which it reads class names: keep it beside the file")
        what = f"{'bare' if target.suffix == '.safetensors' else 'published'} names"
    else:
        _write_run(trained, target)
        what = "a run"
    count, tensors = len(trained.classes) or "no", len(trained.model.state_dict())
    return [*lines, f"{target}: {trained.identity.model}, {count} classes, {tensors} tensors, {what}"]


def read_class_names(path: Path) -> list[str]:
    """Class names, in the order of their numbers: a JSON list, a JSON object of name to number, or one name a line."""
    try:
        text = decoded(path.read_bytes())
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
        names = [line for line in text.split("\n") if line.strip()]
    if names and all(isinstance(name, str) for name in names):
        names = [class_name(name) for name in names]
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise UsageError(f"{path}: holds no class names, or one twice; give one name a line")
    return names


def _missing_files(files: list[Path], target: Path) -> list[Path]:
    """Those that do not lie beside ``target``. Raises UsageError where another of the name does."""
    found = [target.parent / file.name for file in files]
    if other := [to for file, to in zip(files, found) if to.exists() and to.read_bytes() != file.read_bytes()]:
        raise UsageError(f"{target}: needs its tokenizer beside it, and {other[0]} is another: name another folder")
    return [file for file, to in zip(files, found) if not to.exists()]


def _copy(files: list[Path], folder: Path) -> None:
    for file in files:
        write_whole(folder / file.name, file.read_bytes())


def _merged(trained: TrainedModel) -> TrainedModel:
    if not isinstance(trained.model, FrameModel):
        raise UsageError(f"{trained.source}: {trained.identity.model} has nothing that merges: leave --merge out")
    model = trained.model.merged()
    identity = replace(trained.identity, options=model.config, trunk_sha256=trunk_sha256(model))
    return replace(trained, model=model, identity=identity)


def _write_run(trained: TrainedModel, folder: Path) -> None:
    model, identity = trained.model, trained.identity
    several = MULTI_LABEL if trained.recipe.data.multi_label else {}
    recipe = load_recipe(None, {"model": identity.model}).replace(**fields_told(identity), **several)
    trunk = folder.absolute() / TRUNK
    tensors = {name: tensor.detach() for name, tensor in model.trained_tensors().items()}
    written = replace(identity, weights=str(trunk))
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as made:
            made.mkdir()
            save_trunk(model, made / TRUNK)
            _copy(tokenizer_files(model), made)
            write_whole(made / RECIPE, recipe.replace(weights=str(trunk), weights_key=None).to_yaml())
            save_checkpoint(made / "checkpoints", ("last", "best"), tensors, {"step": 0}, written)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); name another place") from None
