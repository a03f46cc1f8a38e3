"""Models by name: ``create_model(name, **overrides)`` and the table of names."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, Literal

from aim_fast.errors import UsageError, nearest
from aim_fast.models.composition import arguments_of, compose
from aim_fast.models.entry import Entry
from aim_fast.models.frame_model import FrameModel
from aim_fast.models.heads import HEADS
from aim_fast.models.methods import method_lines
from aim_fast.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from aim_fast.models.promptclip import PromptCLIP
from aim_fast.models.text_models import prompt_entry, text_entry
from aim_fast.models.trunks.clip import CLIPAViT, CLIPViT
from aim_fast.models.trunks.open_clip_models import OPEN_CLIP, open_clip_entry
from aim_fast.models.trunks.swin import AIMSwin
from aim_fast.models.trunks.timm_models import timm_entry
from aim_fast.models.trunks.vit import ImageNetViT
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weights.timm_tags import TIMM_PREFIX


def _clip(
    patch_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    model: type[VideoModel] = CLIPViT,
    recipes: str = "b16",
    **others: Any,
) -> Entry:
    sizes = {"patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    return Entry(model, sizes | others, recipes)


def _divided(patch_size: int, embed_dim: int, depth: int, num_heads: int, **others: Any) -> Entry:
    return _clip(patch_size, embed_dim, depth, num_heads, **others)._replace(method="timesformer")


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
        14, 1280, 32, 16, CLIPAViT, recipes="l14", activation="gelu", mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
    "aim_vit_demo": _clip(8, 64, 4, 2, recipes="demo", img_size=48, num_classes=8),
    "aim_vit_s16_in21k": _clip(16, 384, 12, 6, ImageNetViT, recipes="in21k_b16"),
    "aim_vit_b16_in21k": _clip(16, 768, 12, 12, ImageNetViT, recipes="in21k_b16"),
    "aim_vit_b32_in21k": _clip(32, 768, 12, 12, ImageNetViT, recipes="in21k_b16"),
    "aim_vit_l16_in21k": _clip(16, 1024, 24, 16, ImageNetViT, recipes="in21k_b16"),
    "aim_vit_imagenet_demo": _clip(8, 64, 4, 2, ImageNetViT, recipes="demo", img_size=48, num_classes=8),
    "aim_swin_t": _swin(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "aim_swin_s": _swin(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "aim_swin_b": _swin(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "aim_swin_demo": _swin(32, (2, 2), (2, 4), recipes="demo_swin", img_size=48, window_size=6, num_classes=8),
    "timesformer_b16_clip": _divided(16, 768, 12, 12),
    "timesformer_l14_clip": _divided(14, 1024, 24, 16, recipes="l14"),
    "timesformer_demo": _divided(8, 64, 4, 2, recipes="demo", img_size=48, num_classes=8),
    "promptclip_b16": _clip(16, 768, 12, 12, PromptCLIP, recipes="promptclip"),
    "promptclip_b32": _clip(32, 768, 12, 12, PromptCLIP, recipes="promptclip"),
    "promptclip_l14": _clip(14, 1024, 24, 16, PromptCLIP, recipes="promptclip", output_dim=768, text_width=768),
    "promptclip_demo": _clip(
        8, 64, 2, 1, PromptCLIP, "promptclip", img_size=48, output_dim=64, text_width=64, text_depth=2, num_classes=8
    ),
}

# Argument names of the published configurations.
ALIASES = {"input_resolution": "img_size", "width": "embed_dim", "layers": "depth", "heads": "num_heads"}


def list_trunks() -> list[str]:
    """Names of trunks, of which those of the models that AIM is put on are made: ``vit_b16_clip`` of aim_vit_b16_clip.

    ``timm:NAME`` and ``open_clip:NAME`` are trunks too.
    """
    return [name.removeprefix("aim_") for name in MODELS if name.startswith("aim_")]


def list_methods() -> list[str]:
    """The words that ``method`` takes."""
    return list(method_lines())


def list_models() -> list[str]:
    """The names that :func:`create_model` takes."""
    return list(MODELS)


def full_name(name: str) -> str:
    """``aim_vit_b16_clip`` of the trunk ``vit_b16_clip``; any other name as it is."""
    return f"aim_{name}" if f"aim_{name}" in MODELS else name


def find_entry(name: str, head: str | None = None, method: str | None = None) -> Entry:
    """The class and arguments of a model's name, under another ``method`` or ``head`` where one is named.

    Raises UsageError for an unknown name, method or head, with the nearest right one, and for a combination that cannot
    be, saying what is missing.
    """
    if name.startswith(TIMM_PREFIX):
        entry = timm_entry(name)
    elif name.startswith(OPEN_CLIP):
        entry = open_clip_entry(name)
    elif (full := full_name(name)) in MODELS:
        entry = MODELS[full]
    else:
        known = (
            MODELS if name.startswith("aim_") else [*list_trunks(), *(one for one in MODELS if full_name(one) == one)]
        )
        raise UsageError(f"unknown model {name!r}: {nearest(name, known)}")
    check_part("method", method)
    check_part("head", head)
    if not issubclass(entry.model, FrameModel):
        own = "promptclip" if entry.model is PromptCLIP else entry.method
        for kind, word, kept in (("method", method, own), ("head", head, "linear")):
            if word not in (None, kept):
                raise UsageError(
                    f"model {name} is of method {own}, with a head of its own, and takes no {kind} {word}: leave it out"
                )
        return entry
    if method == "promptclip":
        if head not in (None, "linear"):
            raise UsageError(f"method promptclip scores class names itself and takes no head {head}: leave it out")
        return prompt_entry(name, entry)
    entry = entry._replace(method=method or entry.method)
    if head == "text":
        return text_entry(name, entry)
    return entry._replace(head=head or entry.head)


def check_part(kind: Literal["method", "head"], word: str | None) -> None:
    """Raises UsageError for a word that is no method or no head, with the nearest that is."""
    known = list_methods() if kind == "method" else HEADS
    if word is not None and word not in known:
        raise UsageError(f"unknown {kind} {word!r}: {nearest(word, known)}")


def argument_names(name: str, head: str | None = None, method: str | None = None) -> list[str]:
    """What a model takes as overrides. Raises UsageError as :func:`find_entry` does."""
    return list(arguments_of(find_entry(name, head, method)))


def create_model(name: str, **overrides: Any) -> VideoModel:
    """A model by name, with fresh adapters, head and trunk: load weights with ``load_checkpoint`` or ``load_weights``.

    ``method`` and ``head`` put its trunk under another method ("aim", "probe", "full", "timesformer") or head
    ("linear"; "text" scores class names by the text tower that the trunk was trained with; "attentive").
    ``open_clip:NAME`` is AIM on the image tower that open_clip knows by that name, such as ``open_clip:ViT-H-14``, and
    ``timm:NAME`` AIM on a ViT of timm's, such as ``timm:vit_small_patch14_reg4_dinov2``.
    Any argument of the trunk, the method and the head can be overridden on any name; ``argument_names(name)`` lists
    them. Of AIM on CLIP they are
    ARGUMENTS.
    The published configurations' names are taken as well,
    ALIASES.
    Raises UsageError for an unknown name or argument (with the nearest right one), and for values that make no model.
    """
    head, method = overrides.pop("head", None), overrides.pop("method", None)
    entry = find_entry(name, head, method)
    known = list(arguments_of(entry))
    arguments: dict[str, Any] = {}
    for key, value in overrides.items():
        target = ALIASES.get(key, key)
        if target not in known:
            raise UsageError(f"model {name} has no argument {key!r}: {nearest(key, [*known, *ALIASES])}")
        if target in arguments:
            raise UsageError(f"argument {target!r} of model {name} is given twice, also as an alias: keep one")
        arguments[target] = value
    try:
        return compose(entry, arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model {name}: {error}") from error


if create_model.__doc__:  # not under python -OO
    _named = {"ARGUMENTS": argument_names("aim_vit_b16_clip"), "ALIASES": ALIASES}
    for _word, _names in _named.items():
        _list = textwrap.fill(f"``{', '.join(_names)}``", 112, subsequent_indent="    ")
        create_model.__doc__ = create_model.__doc__.replace(_word, _list)
