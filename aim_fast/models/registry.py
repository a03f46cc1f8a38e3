"""Models by name: ``create_model(name, **overrides)`` and the table of names."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, Literal

from aim_fast.errors import UsageError, nearest
from aim_fast.models.composition import arguments_of, compose
from aim_fast.models.entry import Entry
from aim_fast.models.frame_model import FrameModel
from aim_fast.models.heads import HEADS, OF_METHODS
from aim_fast.models.libraries import find_network, is_library
from aim_fast.models.library_model import LibraryModel
from aim_fast.models.methods import METHODS, method_lines
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
from aim_fast.models.whole.mtv import MTV
from aim_fast.models.whole.tokenlearner import TokenLearner
from aim_fast.models.whole.uniformer import UniFormer
from aim_fast.models.whole.vivit import ViViT
from aim_fast.models.words import ALIASES, named


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


def _whole(model: type[VideoModel], recipes: str, **arguments: Any) -> Entry:
    return Entry(model, arguments, recipes, method="full")


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
    "uniformer_s": _whole(UniFormer, "uniformer", depths=(3, 4, 8, 3)),
    "uniformer_b": _whole(UniFormer, "uniformer", num_frames=32),
    "uniformer_demo": _whole(
        UniFormer,
        "demo_whole",
        depths=(1, 1, 1, 1),
        embed_dims=(16, 32, 64, 64),
        head_dim=32,
        img_size=64,
        num_classes=8,
    ),
    "vivit_fe_b16x2": _whole(ViViT, "vivit_fe"),
    "vivit_fe_l16x2": _whole(ViViT, "vivit_fe", embed_dim=1024, depth=24, num_heads=16, temporal_layers=24),
    "vivit_fe_demo": _whole(
        ViViT,
        "demo_whole",
        patch_size=8,
        embed_dim=64,
        depth=2,
        num_heads=2,
        temporal_layers=2,
        img_size=48,
        num_frames=8,
        num_classes=8,
    ),
    "mtv_b": _whole(MTV, "mtv"),
    "mtv_l": _whole(
        MTV,
        "mtv",
        tubelets=(16, 8, 4, 2),
        embed_dims=(192, 384, 768, 1024),
        depths=(12, 12, 12, 24),
        num_heads=(3, 6, 12, 16),
        hidden_dims=(768, 1536, 3072, 4096),
        crossings=(11, 23),
    ),
    "mtv_demo": _whole(
        MTV,
        "demo_whole",
        tubelets=(4, 2),
        embed_dims=(32, 64),
        depths=(2, 2),
        num_heads=(1, 2),
        hidden_dims=(64, 128),
        crossings=(1,),
        global_layers=1,
        global_heads=2,
        global_hidden=128,
        patch_size=8,
        img_size=48,
        num_frames=8,
        num_classes=8,
    ),
    "tokenlearner_l10": _whole(TokenLearner, "tokenlearner", num_frames=64),
    "tokenlearner_demo": _whole(
        TokenLearner,
        "demo_whole",
        patch_size=8,
        tubelet=2,
        embed_dim=64,
        depth=4,
        num_heads=2,
        learner_at=2,
        num_tokens=8,
        img_size=48,
        num_frames=8,
        num_classes=8,
    ),
}


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

    A name may have settings, ``NAME,key=value``, arguments of its own from then on. Raises UsageError for an unknown
    name, method, head or key, with the nearest right one, for a combination that cannot be, saying what is missing, and
    for a method or head that the name says otherwise.
    """
    bare, settings = named(name)
    words: dict[str, str | None] = {"head": head, "method": method}
    for kind in words.keys() & settings.keys():
        said = settings.pop(kind)
        if words[kind] not in (None, said):
            raise UsageError(f"model {name} and {kind} {words[kind]} contradict each other: keep one")
        words[kind] = said
    entry = _find_entry(bare, **words)
    return entry._replace(arguments={**entry.arguments, **_arguments(bare, entry, settings)}) if settings else entry


def _find_entry(name: str, head: str | None, method: str | None) -> Entry:
    if name.startswith(TIMM_PREFIX):
        entry = timm_entry(name)
    elif name.startswith(OPEN_CLIP):
        entry = open_clip_entry(name)
    elif is_library(name):
        network, arguments, recipes = find_network(name)
        parts = ("probe", "attentive") if network.under_head else ("full", "linear")
        entry = Entry(LibraryModel, arguments, recipes, *parts, record=network)
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
        heads = ("linear", "attentive") if entry.method == "probe" else ("linear",)
        for kind, word, kept in (("method", method, (own,)), ("head", head, heads)):
            if word not in (None, *kept):
                its = ", with a head of its own," if len(heads) == 1 else ""
                raise UsageError(f"model {name} is of method {own}{its} and takes no {kind} {word}: leave it out")
        return entry._replace(head=head or entry.head)
    if method == "promptclip":
        if head not in (None, "linear"):
            raise UsageError(f"method promptclip scores class names itself and takes no head {head}: leave it out")
        return prompt_entry(name, entry)
    entry = entry._replace(method=method or entry.method)
    if entry.method in OF_METHODS:
        if head not in (None, "linear"):
            raise UsageError(f"method {entry.method} has a head of its own and takes no head {head}: leave it out")
        return text_entry(name, entry, entry.method)
    if METHODS[entry.method].beside and HEADS[head or entry.head].reads_tokens:
        raise UsageError(f"method {entry.method} leaves no tokens to head {head}: take head linear")
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
    ``torchvision:NAME`` and ``transformers:NAME`` are those libraries' own video networks. Any name may be written with
    arguments after it, ``NAME,num_frames=16``.
    Raises UsageError for an unknown name or argument (with the nearest right one), for values that make no model, and
    where the name says another value than an override.
    """
    head, method = overrides.pop("head", None), overrides.pop("method", None)
    entry = find_entry(name, head, method)
    arguments = _arguments(name, entry, overrides)
    settings = named(name)[1]
    for key in settings.keys() & arguments.keys():
        if _plain(settings[key]) != _plain(arguments[key]):
            raise UsageError(f"model {name} and {key} {arguments[key]} contradict each other: keep one")
    try:
        return compose(entry, arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model {name}: {error}") from error


def _arguments(name: str, entry: Entry, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` under the names of the model's arguments. Raises UsageError for one that it has not."""
    known, found = list(arguments_of(entry)), {}
    for key, value in values.items():
        target = ALIASES.get(key, key)
        if target not in known:
            near = nearest(key, [*known, *ALIASES])
            takes = "" if near.startswith("known") else f" It takes {', '.join(known)}"
            raise UsageError(f"model {name} has no argument {key!r}: {near}{takes}")
        if target in found:
            raise UsageError(f"argument {target!r} of model {name} is given twice, also as an alias: keep one")
        found[target] = value
    return found


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


if create_model.__doc__:  # not under python -OO
    _named = {"ARGUMENTS": argument_names("aim_vit_b16_clip"), "ALIASES": ALIASES}
    for _word, _names in _named.items():
        _list = textwrap.fill(f"``{', '.join(_names)}``", 112, subsequent_indent="    ")
        create_model.__doc__ = create_model.__doc__.replace(_word, _list)
