"""Models by name: ``create_model(name, **overrides)`` and the table of names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from aim_fast.errors import UsageError, nearest
from aim_fast.models.entry import Entry
from aim_fast.models.heads.text_models import text_entry
from aim_fast.models.methods.promptclip import PromptCLIP
from aim_fast.models.methods.timesformer import TimeSformerCLIP
from aim_fast.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from aim_fast.models.trunks.clip_aim import AIMViTCLIP
from aim_fast.models.trunks.clipa import AIMViTCLIPA
from aim_fast.models.trunks.open_clip_models import OPEN_CLIP, open_clip_entry
from aim_fast.models.trunks.swin import AIMSwin
from aim_fast.models.trunks.timm_models import timm_entry
from aim_fast.models.trunks.vit import AIMViTImageNet
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weights.timm_tags import TIMM_PREFIX


def _clip(
    patch_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    model: Callable[..., VideoModel] = AIMViTCLIP,
    recipes: str = "b16",
    **others: Any,
) -> Entry:
    sizes = {"patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    return Entry(model, sizes | others, recipes)


def _swin(
    embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...], recipes: str = "swin_b", **others: Any
) -> Entry:
    return Entry(AIMSwin, {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads} | others, recipes)


# The largest CLIPs were trained with the exact GELU; OpenAI's with QuickGELU.
MODELS: Mapping[str, Entry] = {
    "aim_vit_b16_clip": _clip(16, 768, 12, 12),
    "aim_vit_b32_clip": _clip(32, 768, 12, 12),
    "aim_vit_l14_clip": _clip(14, 1024, 24, 16, recipes="l14"),
    "aim_vit_l14_336_clip": _clip(14, 1024, 24, 16, recipes="l14", img_size=336),
    "aim_vit_h14_clip": _clip(14, 1280, 32, 16, recipes="l14", activation="gelu"),
    "aim_vit_g14_clip": _clip(14, 1408, 40, 16, recipes="l14", activation="gelu", mlp_ratio=4.3637),
    "aim_vit_bigg14_clip": _clip(14, 1664, 48, 16, recipes="l14", activation="gelu", mlp_ratio=4.9231),
    "aim_vit_h14_clipa": _clip(
        14, 1280, 32, 16, AIMViTCLIPA, recipes="l14", activation="gelu", mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
    "aim_vit_demo": _clip(8, 64, 4, 2, recipes="demo", img_size=48, num_classes=8),
    "aim_vit_s16_in21k": _clip(16, 384, 12, 6, AIMViTImageNet, recipes="in21k_b16"),
    "aim_vit_b16_in21k": _clip(16, 768, 12, 12, AIMViTImageNet, recipes="in21k_b16"),
    "aim_vit_b32_in21k": _clip(32, 768, 12, 12, AIMViTImageNet, recipes="in21k_b16"),
    "aim_vit_l16_in21k": _clip(16, 1024, 24, 16, AIMViTImageNet, recipes="in21k_b16"),
    "aim_vit_imagenet_demo": _clip(8, 64, 4, 2, AIMViTImageNet, recipes="demo", img_size=48, num_classes=8),
    "aim_swin_t": _swin(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "aim_swin_s": _swin(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "aim_swin_b": _swin(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "aim_swin_demo": _swin(32, (2, 2), (2, 4), recipes="demo_swin", img_size=48, window_size=6, num_classes=8),
    "timesformer_b16_clip": _clip(16, 768, 12, 12, TimeSformerCLIP),
    "timesformer_l14_clip": _clip(14, 1024, 24, 16, TimeSformerCLIP, recipes="l14"),
    "timesformer_demo": _clip(8, 64, 4, 2, TimeSformerCLIP, recipes="demo", img_size=48, num_classes=8),
    "promptclip_b16": _clip(16, 768, 12, 12, PromptCLIP, recipes="promptclip"),
    "promptclip_b32": _clip(32, 768, 12, 12, PromptCLIP, recipes="promptclip"),
    "promptclip_l14": _clip(14, 1024, 24, 16, PromptCLIP, recipes="promptclip", output_dim=768, text_width=768),
    "promptclip_demo": _clip(
        8, 64, 2, 1, PromptCLIP, "promptclip", img_size=48, output_dim=64, text_width=64, text_depth=2, num_classes=8
    ),
}

# Argument names of the published configurations.
ALIASES = {"input_resolution": "img_size", "width": "embed_dim", "layers": "depth", "heads": "num_heads"}


def list_models() -> list[str]:
    """The names that :func:`create_model` takes."""
    return list(MODELS)


def find_entry(name: str, head: str = "linear") -> Entry:
    """The class and arguments of a model's name, with a classifier ("linear") or CLIP's own head ("text").

    Raises UsageError for an unknown name, with the nearest right one, and for a model that has no such head.
    """
    if head == "text":
        return text_entry(name, find_entry(name))
    if head != "linear":
        raise UsageError(f"head {head!r} is neither linear nor text")
    if name.startswith(TIMM_PREFIX):
        return timm_entry(name)
    if name.startswith(OPEN_CLIP):
        return open_clip_entry(name)
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}: {nearest(name, MODELS)}")
    return MODELS[name]


def argument_names(name: str, head: str = "linear") -> list[str]:
    """What a model takes as overrides. Raises UsageError for an unknown name, and for a head that it has not."""
    return _parameters(find_entry(name, head).model)


def _parameters(model: Callable[..., VideoModel]) -> list[str]:
    """Of the constructor, and of those that it passes its other arguments on to."""
    names: list[str] = []
    for cls in inspect.getmro(model):  # type: ignore[arg-type]
        if constructor := vars(cls).get("__init__"):
            own = inspect.signature(constructor).parameters
            names += [key for key, one in own.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
            if all(one.kind != one.VAR_KEYWORD for one in own.values()):
                break
    return [name for name in dict.fromkeys(names) if name != "self"]


def create_model(name: str, **overrides: Any) -> VideoModel:
    """A model by name, with fresh adapters, head and trunk: load weights with ``load_checkpoint`` or ``load_weights``.

    ``head="text"`` scores class names by CLIP's own head, which the AIM models on CLIP keep.
    ``open_clip:NAME`` is AIM on the image tower that open_clip knows by that name, such as ``open_clip:ViT-H-14``, and
    ``timm:NAME`` AIM on a plain ViT of timm's, such as ``timm:vit_small_patch14_reg4_dinov2``.
    Any argument of the model's class can be overridden on any name: ``img_size, patch_size, embed_dim, depth,
    num_heads, mlp_ratio, num_frames, num_tadapter, adapter_scale, adapter_ratio, drop_path, num_classes,
    drop_path_mode, adapters, adapter_layers, temporal_place, tune, activation, head_dropout, mean, std``; the published
    configurations' ``input_resolution, width, layers, heads`` are taken as well. Raises UsageError for an unknown name
    or argument (with the nearest right one), and for values that make no model.
    """
    head = overrides.get("head", "linear")
    if head == "linear":
        overrides.pop("head", None)
    entry, known = find_entry(name, head), argument_names(name, head)
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
