"""Models by open_clip's names, ``open_clip:ViT-H-14``: the architecture out of open_clip's configurations, no weights.

CLIP's own towers, CLIPA's, plain ViTs that open_clip takes from timm (MobileCLIP2-L-14), and any other of timm's with
pre-norm blocks in a row. A tower of another structure is refused by the name of the structure.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from aim_fast.errors import UsageError, nearest
from aim_fast.models.entry import Entry
from aim_fast.models.trunks.clip import CLIPAViT, CLIPViT
from aim_fast.models.trunks.timm_models import trunk_arguments, vit_arguments
from aim_fast.models.trunks.vit import ImageNetViT
from aim_fast.models.weights.timm_tags import timm_normalisation

OPEN_CLIP = "open_clip:"


@functools.cache
def open_clip_entry(name: str) -> Entry:
    """The model of ``open_clip:NAME``.

    Raises UsageError for a name that open_clip does not know (with the nearest that it does), and for a tower on which
    AIM is not built, naming what it has that a plain ViT has not.
    """
    import open_clip  # imports timm and torchvision: seconds that nobody with a name of ours should wait

    model, slash, _ = name.removeprefix(OPEN_CLIP).partition("/")
    known = open_clip.list_models()
    if model not in known:
        raise UsageError(f"open_clip has no model {model!r} (in {name!r}): {nearest(model, fitting(known), 3)}")
    if slash:
        raise UsageError(f"{name!r} is a tag of weights: give the model {OPEN_CLIP}{model} and the weights {name}")
    config = open_clip.get_model_config(model) or {}
    vision = config["vision_cfg"]
    if odd := _odd_structure(vision):
        raise UsageError(f"{name}: its image tower has {odd}, on which no method is built here: see docs/trunks.md")
    if timm_name := vision.get("timm_model_name"):
        return _timm_tower(name, timm_name, vision)
    clipa = bool(vision.get("no_ln_pre"))
    width = vision["width"]
    arguments = {
        "img_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "embed_dim": width,
        "depth": vision["layers"],
        "num_heads": width // vision.get("head_width", 64),
        "mlp_ratio": vision.get("mlp_ratio", 4.0),
        "activation": "quick_gelu" if config.get("quick_gelu") else "gelu",
    }
    return Entry(CLIPAViT if clipa else CLIPViT, arguments, _recipes(arguments))


def _recipes(arguments: Mapping[str, Any]) -> str:
    """The published recipes by size: of ViT-L/14 from its width on."""
    return "l14" if arguments["embed_dim"] >= 1024 else "b16"


def fitting(names: Iterable[str]) -> list[str]:
    """Those of open_clip's ``names`` on whose image tower AIM can be put."""
    import open_clip

    return [name for name in names if not _odd_structure((open_clip.get_model_config(name) or {})["vision_cfg"])]


def _odd_structure(vision: Mapping[str, Any]) -> str | None:
    """What of a tower's configuration (``vision_cfg``) is not built here, in the field's words."""
    if timm_name := vision.get("timm_model_name"):
        return next((what for part, what in _TIMM_STRUCTURES.items() if part in timm_name), None)
    if isinstance(vision["layers"], (list, tuple)):
        return "convolutional stages (a ResNet)"
    clipa = [bool(vision.get("no_ln_pre")), vision.get("pool_type") == "avg", bool(vision.get("final_ln_after_pool"))]
    if any(clipa) and not all(clipa):
        return "a pooling or a stem that is neither CLIP's nor CLIPA's"
    plain = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout", "output_tokens"}
    plain |= {"no_ln_pre", "pool_type", "final_ln_after_pool"}
    odd = [key for key, value in vision.items() if key not in plain and value]
    return _STRUCTURES.get(odd[0], odd[0]) if odd else None


def _timm_tower(name: str, architecture: str, vision: Mapping[str, Any]) -> Entry:
    """A tower of timm's: a plain ViT, or any other that is taken, in the pooling and the image size of open_clip."""
    from aim_fast.models.trunks.timm import TimmViT, structure

    pool = vision.get("timm_pool") or ""
    mean, std = timm_normalisation(architecture)
    try:
        arguments = vit_arguments(structure(architecture, pool if pool in ("token", "avg") else ""))
        arguments |= {"img_size": vision["image_size"]}
        return Entry(ImageNetViT, arguments, _recipes(arguments))
    except ValueError:
        arguments = trunk_arguments(architecture, name) | {"timm_pool": pool, "img_size": vision["image_size"]}
        return Entry(TimmViT, arguments | {"mean": mean, "std": std}, _recipes(arguments))


_STRUCTURES = {"attentional_pool": "attention pooling", "ls_init_value": "LayerScale"}
# By what timm's names of towers hold that are not built here, the most telling first.
_TIMM_STRUCTURES = {
    "eva02_enormous": "norms after attention and MLP instead of before (EVA-02 E)",
    "convnext": "convolutional stages (ConvNeXt)",
    "fastvit": "convolutional stages (FastViT)",
    "vitamin": "convolutional stages (ViTamin)",
    "swin": "windows (Swin): take aim_swin_b",
}
