"""A whole trained model in one file: trunk, adapters and head, in the names of the published checkpoints.

    {"meta": {"aim_fast": JSON}, "state_dict": {"backbone.…": Tensor, "cls_head.fc_cls.…": Tensor}}     .pth, .pt
    bare names without the two prefixes, the JSON in the metadata                                       .safetensors

PromptCLIP and models that are trained whole have no prefixes in either.

The JSON (``model``, ``options`` of create_model, ``classes``, ``multi_label``) is what tensors do not tell; the
published code passes over it, and files that lack it, the published ones, are taken with the published defaults.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from aim_fast.errors import CheckpointError, UsageError, WeightsError
from aim_fast.files import write_whole
from aim_fast.models.heads.class_texts import read_templates
from aim_fast.models.identification import check_said, identify
from aim_fast.models.identity import Identity
from aim_fast.models.loading import load_weights, with_trunk
from aim_fast.models.registry import create_model, find_entry
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weights.files import DESCRIPTION, WeightsFile, read_weights
from aim_fast.models.words import written
from aim_fast.training.part_groups import UNTOLD
from aim_fast.training.recipe import FIELDS, Recipe, coerce
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.recipe_model import MODEL_FIELDS
from aim_fast.training.trained_model import TrainedModel

# The fields of a recipe for clips of several labels, whatever the model's recipe mixes.
MULTI_LABEL = {"multi_label": True, "mixup": 0.0, "cutmix": 0.0}


def read_trained(path: Path, fields: dict[str, Any], classes: list[str] | None = None) -> TrainedModel:
    """The model of a trained checkpoint file, on the CPU as the file has it.

    ``fields``: recipe fields as typed; ``model``, ``frames`` and those of ``UNTOLD`` say what a file cannot, the first
    two are checked against it. ``classes``: the names for a file that holds none. A model that reads class names has
    none of its own where neither says them. Raises WeightsError for a file of another variant than asked, and
    CheckpointError for another number of classes.
    """
    trunk = fields.get("weights")
    file = with_trunk(read_weights(path, fields.get("weights_key")), str(path), trunk)
    parts = {part: str(fields[part]) for part in ("method", "head") if fields.get(part) is not None}
    found = _identified(file, path, fields.get("model"), parts)
    options = dict(found.options)
    if fields.get("frames") is not None:
        options["num_frames"] = coerce("frames", fields["frames"], "command line")
    options |= _settings(path, found, fields, () if file.description else UNTOLD)
    model = create_model(found.model, **options)
    report = load_weights(model, str(path), key=fields.get("weights_key"), trunk=trunk)
    lines = report.lines + (_untold(model, path, fields, options) if file.description is None else [])
    if model.takes_class_names:
        names = list(model.class_names)
    else:
        names = found.classes or [f"class {number}" for number in range(model.num_classes)]
    identity = Identity(found.model, model.config, names, report.sha256, str(path))
    recipe = _recipe_of(identity, path, fields)
    if (file.description or {}).get("multi_label"):
        recipe = recipe.replace(**MULTI_LABEL)
    trained = TrainedModel(model, identity, recipe, str(path), lines)
    return name_classes(trained, classes) if classes else trained


def _identified(file: WeightsFile, path: Path, asked: str | None, parts: Mapping[str, str]) -> Identity:
    """The model that a file is of; raises WeightsError for one of another method or head than ``parts`` name."""
    if file.description is None and asked:  # by its tensors: the name has the parts for that alone
        found, method = replace(identify(file, str(path), written(asked, parts)), model=asked), parts.get("method")
    else:
        found = identify(file, str(path), asked)
        method = found.options.get("method")
    own = find_entry(found.model, found.options.get("head"), method)
    for part, name in parts.items():
        if (right := getattr(own, part)) != name:
            raise WeightsError(f"{path}: is of {part} {right}, not {name}: leave that out")
    return replace(found, options={**found.options, **parts})


def _settings(path: Path, found: Identity, fields: Mapping[str, Any], untold: Collection[str]) -> dict[str, Any]:
    """The model's arguments among ``fields``; raises WeightsError for one of which the file says otherwise.

    ``untold`` are those of which what was found is no more than what is published.
    """
    asked = {name: coerce(name, fields[name], "command line") for name in MODEL_FIELDS if fields.get(name) is not None}
    if templates := asked.get("templates"):
        asked["templates"] = read_templates(templates)
    for name, value in asked.items():
        if name in found.options and name not in untold:
            check_said(str(path), name, found.options[name], value)
    return asked


def _recipe_of(identity: Identity, path: Path, fields: dict[str, Any]) -> Recipe:
    """The defaults of the model's recipes, with what the file and the typed fields say."""
    recipe = load_recipe(None, {"weights": str(path), **fields, "model": identity.model})
    return recipe.replace(**fields_told(identity))


def fields_told(identity: Identity) -> dict[str, Any]:
    """The recipe fields that a model's name and arguments are."""
    told = {**identity.options, "frames": identity.options["num_frames"], "model": identity.model, "templates": None}
    return {name: value for name, value in told.items() if name in FIELDS and value is not None}


def _untold(model: VideoModel, path: Path, fields: dict[str, Any], told: Mapping[str, Any]) -> list[str]:
    """What is taken for granted of a file, but the activation, of which loading has its own line."""
    names = [name for name in UNTOLD if name != "activation" and name in model.config and fields.get(name) is None]
    said = ", ".join(
        [*(f"--{name.replace('_', '-')} ({model.config[name]})" for name in names)]
        + ([] if "num_frames" in told else [f"--frames ({model.num_frames})"])
    )
    return [f"{path} does not tell what is published: say {said} if not so"] if said else []


def is_numbered(classes: list[str]) -> bool:
    """Whether nobody named the classes."""
    return classes == [f"class {number}" for number in range(len(classes))]


def name_classes(trained: TrainedModel, classes: list[str]) -> TrainedModel:
    """The same with these class names; raises CheckpointError where a classifier has another number of them."""
    if trained.model.takes_class_names:
        trained.model.set_classes(classes)
    elif len(classes) != len(trained.classes):
        raise CheckpointError(
            f"{trained.source}: has {len(trained.classes)} classes, the data set {len(classes)}; take the classes of "
            "the data it was trained on"
        )
    return trained.with_classes(classes)


def write_trained(trained: TrainedModel, path: Path) -> None:
    """Write a trained model: ``.safetensors`` with bare names, ``.pth`` or ``.pt`` as the published checkpoints are.

    Tensors keep their dtype and every bit. Raises UsageError for another ending and where the disk refuses.
    """
    model, identity = trained.model, trained.identity
    if identity.options.get("head") == "text" and path.suffix != ".safetensors":
        raise UsageError(f"{path}: the published names know no text head; name a .safetensors file or a folder")
    told: dict[str, Any] = {"model": identity.model, "options": identity.options, "classes": identity.classes}
    if trained.recipe.data.multi_label:
        told["multi_label"] = True
    meta = {DESCRIPTION: json.dumps(told)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content: bytes | memoryview  # written from memory: where a disk is full, the system then says so
    if path.suffix == ".safetensors":
        content = save({name: tensor.clone() for name, tensor in tensors.items()}, meta)
    elif path.suffix in (".pth", ".pt"):
        published = {model.published_name(name): tensor for name, tensor in tensors.items()}
        packed = io.BytesIO()
        torch.save({"meta": meta, "state_dict": published}, packed)
        content = packed.getbuffer()
    else:
        raise UsageError(f"{path}: end the name in .pth (published names) or .safetensors, or give a folder")
    try:
        write_whole(path, content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}); name another place") from None
