"""Models by open_clip's names, ``open_clip:ViT-H-14``: the architecture out of open_clip's configurations, no weights.

AIM goes on towers of plain pre-norm blocks: CLIP's own, CLIPA's, and plain ViTs that open_clip takes from timm
(MobileCLIP2-L-14). A tower of another structure is refused by the name of the structure.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from aim_fast.errors import UsageError, nearest
from aim_fast.models.entry import Entry
from aim_fast.models.trunks.clip_aim import AIMViTCLIP
from aim_fast.models.trunks.clipa import AIMViTCLIPA
from aim_fast.models.trunks.timm_models import vit_arguments
from aim_fast.models.trunks.vit import AIMViTImageNet

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
    if (timm_name := vision.get("timm_model_name")) and not _odd_structure(vision):
        arguments = _timm_arguments(timm_name, vision) | {"img_size": vision["image_size"]}
        return Entry(AIMViTImageNet, arguments, _recipes(arguments))
    if odd := _odd_structure(vision):
        raise UsageError(f"{name}: its image tower has {odd}, which AIM on a CLIP ViT has not; choose a plain ViT")
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
    return Entry(AIMViTCLIPA if clipa else AIMViTCLIP, arguments, _recipes(arguments))


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
        return _odd_timm_structure(timm_name, vision)
    if isinstance(vision["layers"], (list, tuple)):
        return "convolutional stages (a ResNet)"
    clipa = [bool(vision.get("no_ln_pre")), vision.get("pool_type") == "avg", bool(vision.get("final_ln_after_pool"))]
    if any(clipa) and not all(clipa):
        return "a pooling or a stem that is neither CLIP's nor CLIPA's"
    plain = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout", "output_tokens"}
    plain |= {"no_ln_pre", "pool_type", "final_ln_after_pool"}
    odd = [key for key, value in vision.items() if key not in plain and value]
    return _STRUCTURES.get(odd[0], odd[0]) if odd else None


def _odd_timm_structure(name: str, vision: Mapping[str, Any]) -> str | None:
    for part, structure in _TIMM_STRUCTURES.items():
        if part in name:
            return structure
    if vision.get("timm_pool") == "map":
        return "attention pooling"
    try:
        _timm_arguments(name, vision)
    except ValueError as error:
        return str(error)
    return None


def _timm_arguments(name: str, vision: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :class:`AIMViTImageNet` for a tower of timm's; ValueError names what a plain ViT has not."""
    import timm

    pool = vision.get("timm_pool")
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=0, **({"global_pool": pool} if pool in ("token", "avg") else {}))
    return vit_arguments(module)


_STRUCTURES = {"attentional_pool": "attention pooling", "ls_init_value": "LayerScale"}
# By what timm's names of such towers hold, the most telling first.
_TIMM_STRUCTURES = {
    "eva02_enormous": "norms after attention and MLP instead of before (EVA-02 E)",
    "eva02": "rotary position embedding and gated MLPs (EVA-02)",
    "eva_giant": "separate biases of queries and values (EVA)",
    "pe_core": "rotary position embedding and attention pooling (PE)",
    "siglip": "attention pooling and no class token (SigLIP)",
    "convnext": "convolutional stages (ConvNeXt)",
    "fastvit": "convolutional stages (FastViT)",
    "mci": "a convolutional stem (MobileCLIP)",
    "vitamin": "convolutional stages (ViTamin)",
    "relpos": "relative position biases",
    "swin": "windows (Swin): take aim_swin_b",
}
