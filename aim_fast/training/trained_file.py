"""A whole trained model in one file: trunk, adapters and head, in the names of the published checkpoints.

    {"meta": {"aim_fast": JSON}, "state_dict": {"backbone.…": Tensor, "cls_head.fc_cls.…": Tensor}}     .pth, .pt
    bare names without the two prefixes, the JSON in the metadata                                       .safetensors

The JSON (``model``, ``options`` of create_model, ``classes``) is what tensors do not tell; the published code passes
over it, and files that lack it, the published ones, are taken with the published defaults.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from aim_fast.errors import CheckpointError, UsageError
from aim_fast.models.identification import identify
from aim_fast.models.registry import create_model
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weight_files import DESCRIPTION, read_weights
from aim_fast.models.weights import WeightsReport, load_weights
from aim_fast.training.checkpoint import Description
from aim_fast.training.recipe import coerce


def read_trained(
    path: Path, fields: dict[str, Any], classes: list[str] | None = None
) -> tuple[VideoModel, Description, WeightsReport]:
    """The model of a trained checkpoint file, on the CPU as the file has it.

    ``fields``: recipe fields as typed; ``model``, ``frames``, ``adapter_scale`` and ``activation`` say what a file
    cannot, the first two are checked against it. ``classes``: the names for a file that holds none. Raises
    WeightsError for a file of another variant than asked, and CheckpointError for another number of classes.
    """
    found = identify(read_weights(path), str(path), fields.get("model"))
    options = dict(found.arguments)
    for field, option in (("frames", "num_frames"), ("adapter_scale",) * 2, ("activation",) * 2):
        if fields.get(field) is not None:
            options[option] = coerce(field, fields[field], "command line")
    model = create_model(found.model, **options)
    report = load_weights(model, str(path))
    names = found.classes or [f"class {number}" for number in range(model.num_classes)]
    description = Description(found.model, model.config, list(names), report.sha256, str(path))
    return model, name_classes(description, classes, path) if classes else description, report


def is_numbered(classes: list[str]) -> bool:
    """Whether nobody named the classes."""
    return classes == [f"class {number}" for number in range(len(classes))]


def name_classes(description: Description, classes: list[str], path: Path) -> Description:
    """The description with these names; raises CheckpointError for another number of them."""
    if len(classes) != len(description.classes):
        raise CheckpointError(
            f"{path}: has {len(description.classes)} classes, the data set {len(classes)}; take the classes of the "
            "data it was trained on"
        )
    return dataclasses.replace(description, classes=list(classes))


def write_trained(model: VideoModel, description: Description, path: Path) -> None:
    """Write a trained model: ``.safetensors`` with bare names, ``.pth`` or ``.pt`` as the published checkpoints are.

    Tensors keep their dtype and every bit. Raises UsageError for another ending and where the disk refuses.
    """
    if description.options.get("head") == "text" and path.suffix != ".safetensors":
        raise UsageError(f"{path}: the published names know no text head; name a .safetensors file or a folder")
    told = {"model": description.model, "options": description.options, "classes": description.classes}
    meta = {DESCRIPTION: json.dumps(told)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".safetensors":
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, temporary, metadata=meta)
        elif path.suffix in (".pth", ".pt"):
            torch.save({"meta": meta, "state_dict": published_names(tensors)}, temporary)
        else:
            raise UsageError(f"{path}: end the name in .pth (published names) or .safetensors, or give a folder")
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{path}: cannot be written ({str(error).splitlines()[0]}); name another place") from None
    finally:
        temporary.unlink(missing_ok=True)


def published_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``cls_head.`` before the classifier, ``backbone.`` before the rest."""
    return {f"{'cls_head' if name.startswith('fc_cls.') else 'backbone'}.{name}": t for name, t in tensors.items()}
