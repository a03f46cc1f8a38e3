"""Models by name: ``create_model(name, **overrides)`` and the table of names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aim_fast.errors import UsageError, nearest
from aim_fast.models.aim_vit_clip import AIMViTCLIP
from aim_fast.models.timesformer_clip import TimeSformerCLIP
from aim_fast.models.video_model import VideoModel


class Entry(NamedTuple):
    """A model's class and the arguments in which it differs from the class's defaults."""

    model: Callable[..., VideoModel]
    arguments: Mapping[str, Any]


MODELS: Mapping[str, Entry] = {
    "aim_vit_b16_clip": Entry(AIMViTCLIP, {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}),
    "aim_vit_l14_clip": Entry(AIMViTCLIP, {"patch_size": 14, "embed_dim": 1024, "depth": 24, "num_heads": 16}),
    "aim_vit_demo": Entry(
        AIMViTCLIP,
        {"img_size": 48, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2, "num_classes": 8},
    ),
    "timesformer_b16_clip": Entry(TimeSformerCLIP, {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}),
    "timesformer_l14_clip": Entry(TimeSformerCLIP, {"patch_size": 14, "embed_dim": 1024, "depth": 24, "num_heads": 16}),
    "timesformer_demo": Entry(
        TimeSformerCLIP,
        {"img_size": 48, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2, "num_classes": 8},
    ),
}

# Argument names of the published configurations.
ALIASES = {"input_resolution": "img_size", "width": "embed_dim", "layers": "depth", "heads": "num_heads"}


def list_models() -> list[str]:
    """The names that :func:`create_model` takes."""
    return list(MODELS)


def create_model(name: str, **overrides: Any) -> VideoModel:
    """A model by name, with fresh adapters, head and trunk: load weights with ``load_checkpoint`` or ``load_weights``.

    Any argument of the model's class can be overridden on any name: ``img_size, patch_size, embed_dim, depth,
    num_heads, num_frames, num_tadapter, adapter_scale, adapter_ratio, drop_path, num_classes, drop_path_mode,
    adapters, activation, head_dropout, mean, std``; the published configurations' ``input_resolution, width, layers,
    heads`` are taken as well. Raises UsageError for an unknown name or argument (with the nearest right one), and for
    values that make no model.
    """
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}: {nearest(name, MODELS)}")
    entry = MODELS[name]
    known = list(inspect.signature(entry.model).parameters)
    arguments = dict(entry.arguments)
    given: set[str] = set()
    for key, value in overrides.items():
        target = ALIASES.get(key, key)
        if target not in known:
            raise UsageError(f"model {name} has no argument {key!r}: {nearest(key, [*known, *ALIASES])}")
        if target in given:
            raise UsageError(f"argument {target!r} of model {name} is given twice, also as an alias: keep one")
        given.add(target)
        arguments[target] = value
    try:
        return entry.model(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model {name}: {error}") from error
