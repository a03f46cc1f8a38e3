"""Weights of a plain ViT in timm's names, with or without AIM's adapters, into a model with those names.

An image checkpoint has the trunk and often a classifier, which is left out. Its last norm is timm's ``norm``, or
``fc_norm`` where patches are averaged first; here and in published AIM checkpoints it is ``ln_post``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from aim_fast.errors import WeightsError
from aim_fast.models.weights.adaptation import check_method, fit_adaptation, is_adapted
from aim_fast.models.weights.architecture import adaptation_arguments, what_else, width_ratio
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_fast.models.weights.interpolation import interpolate_positions
from aim_fast.models.weights.state_dict import strip_prefixes

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_OPEN_CLIP_TOWER = "visual.trunk."  # open_clip's name for an image tower of timm's, beside its projection and text
_NORMS = {"norm.": "ln_post.", "fc_norm.": "ln_post."}
_BESIDE = "side."  # a network beside the trunk, with names of its own
# Parts of names that tell a structure which AIM on a plain ViT has not.
_STRUCTURES = {
    ".relative_position_bias_table": "relative position biases",
    ".rel_pos_": "relative position biases",
    ".rope": "rotary position embedding",
    ".gamma_1": "LayerScale in BEiT's form",
    ".w12.": "gated MLPs (SwiGLU)",
    ".w1.": "gated MLPs (SwiGLU)",
    ".fc1_g.": "gated MLPs (SwiGLU)",
    ".q_proj.": "separate projections of queries, keys and values",
    ".q_bias": "separate biases of queries and values",
    ".attn_pool.": "attention pooling",
    ".dist_token": "a distillation token",
    ".patch_embed.backbone.": "a convolutional stem",
    ".downsample.": "stages (Swin or another hierarchy)",
}


def is_vit(tensors: Mapping[str, Tensor]) -> bool:
    """Whether bare names are those of a plain ViT of timm's."""
    return "patch_embed.proj.weight" in tensors and "blocks.0.norm1.weight" in tensors


def fit_weights(model: Any, file: WeightsFile, source: str) -> Fit:
    """Resize what may be resized and check the rest; the lines say what is not taken as it is.

    Raises WeightsError for a file without a plain ViT, of another architecture, or with adapters that the model lacks.
    """
    tower = vit_tower(file.tensors, source)
    check_method(model, tower, source)
    theirs = infer_arguments(tower, source)
    for key, what in _TRUNK.items():
        ours = getattr(model, key) is not None if key == "init_values" else getattr(model, key)
        found = theirs[key] is not None if key == "init_values" else theirs[key]
        same = abs(found - ours) * model.embed_dim < 1 if key == "mlp_ratio" else found == ours
        if not same:
            raise WeightsError(
                f"{source} is of another architecture: {what} {_words(found)}, the model's {_words(ours)}; it looks "
                f"like {describe(theirs)}"
            )
    lines: list[str] = []
    adaptation = {name: tensor for name, tensor in tower.items() if model.is_adaptation(name)}
    tensors = {name: tensor for name, tensor in tower.items() if name not in adaptation}
    if theirs["img_size"] != model.img_size:
        before = 0 if model.no_embed_class else model.num_prefix_tokens
        tensors["pos_embed"] = interpolate_positions(tensors["pos_embed"][0], model.pos_embed.shape[1], before)[None]
        sides = [size // model.patch_size for size in (theirs["img_size"], model.img_size)]
        lines.append(
            f"positional embedding interpolated from {sides[0]}×{sides[0]} patches ({theirs['img_size']} px) "
            f"to {sides[1]}×{sides[1]} ({model.img_size} px)"
        )
    if not is_adapted(model, tower):
        left = {name for name in model.state_dict() if model.is_adaptation(name)}
        if file.settings.mean is None:
            mean, std = ([round(value, 3) for value in values] for values in (model.mean, model.std))
            lines.append(f"{source} does not say its mean and std: pixels are normalised with mean {mean}, std {std}")
        return Fit(tensors, left, "timm", lines, file.activation)
    more, left = fit_adaptation(model, adaptation, theirs, "blocks.", source)
    lines += more
    tensors |= {name: tensor for name, tensor in adaptation.items() if name not in left}
    return Fit(tensors, left, "aim", lines, file.activation)


def vit_tower(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a plain ViT in AIM's names, without an image classifier.

    Raises WeightsError where there is none, saying what is there instead, and for a structure that is not built,
    naming it.
    """
    if any(name.startswith(_OPEN_CLIP_TOWER) for name in tensors):
        tensors = {name.removeprefix(_OPEN_CLIP_TOWER): t for name, t in tensors.items() if _OPEN_CLIP_TOWER in name}
    tensors = _as_timm(strip_prefixes(tensors, where))
    if not is_vit(tensors):
        raise WeightsError(f"{where} holds no ViT in timm's names: {_what_else(tensors)}")
    for part, structure in _STRUCTURES.items():
        if any(part in f".{name}" for name in tensors if not name.startswith(_BESIDE)):
            raise WeightsError(f"{where} has {structure}, which AIM on a plain ViT has not: take a plain ViT")
    if "pos_embed" not in tensors:
        raise WeightsError(f"{where} has no positional embedding (pos_embed): take a plain ViT")
    tower = {}
    for name, tensor in tensors.items():
        if name.startswith(("head.", "head_drop.", "pre_logits.", "decoder_")) or name == "mask_token":
            continue
        for theirs, ours in _NORMS.items():
            name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
        tower[name] = tensor
    return tower


def _as_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's own names as timm has them: blocks without the number of their chunk, and registers after a class token
    that has its position added, so that positions are those of patches alone."""
    found = {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name): tensor for name, tensor in tensors.items()}
    if {"register_tokens", "cls_token", "pos_embed"} <= found.keys():
        positions, found["reg_token"] = found["pos_embed"], found.pop("register_tokens")
        found["cls_token"], found["pos_embed"] = found["cls_token"] + positions[:, :1], positions[:, 1:]
    return found


def infer_arguments(tower: Mapping[str, Tensor], where: str = "the state dict") -> dict[str, Any]:
    """Arguments of ``create_model`` that fit a tower in AIM's names.

    Those of the trunk always; ``adapters, adapter_layers, adapter_ratio, num_tadapter, num_frames, num_classes`` where
    the tensors tell. The number of heads is guessed, 64 channels each, but where qk-norm tells it. Raises WeightsError
    where the positional embedding is no square grid's.
    """
    blocks = [match for match in map(_BLOCK.fullmatch, tower) if match]
    width, patch = tower["patch_embed.proj.weight"].shape[0], tower["patch_embed.proj.weight"].shape[-1]
    class_token, registers = "cls_token" in tower, tower["reg_token"].shape[1] if "reg_token" in tower else 0
    positions = tower["pos_embed"].shape[1] if tower["pos_embed"].ndim == 3 else 0
    prefix = int(class_token) + registers
    embedded = positions - prefix > 0 and math.isqrt(positions - prefix) ** 2 == positions - prefix
    grid = math.isqrt(max(positions - (prefix if embedded else 0), 0))
    if grid < 1 or positions not in (grid**2, grid**2 + prefix):
        raise WeightsError(f"{where} has a positional embedding of {positions} rows, which is no square grid's")
    hidden = tower["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in tower else 4 * width
    head = tower.get("blocks.0.attn.q_norm.weight")
    found: dict[str, Any] = {
        "embed_dim": width,
        "depth": 1 + max(int(match[1]) for match in blocks),
        "patch_size": patch,
        "img_size": grid * patch,
        "num_heads": max(width // (64 if head is None else len(head)), 1),
        "mlp_ratio": width_ratio(width, hidden),
        "class_token": class_token,
        "reg_tokens": registers,
        "no_embed_class": not embedded and prefix > 0,
        "pre_norm": "norm_pre.weight" in tower,
        "global_pool": "token" if class_token else "avg",
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in tower else None,
        "qk_norm": head is not None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tower,
        "proj_bias": "blocks.0.attn.proj.bias" in tower,
    }
    found |= adaptation_arguments(tower, _BLOCK)
    if 0 not in found.get("adapter_layers", [0]):  # the published code adds the temporal embedding in the stem always
        found["temporal_place"] = "stem"
    return found


def describe(architecture: Mapping[str, Any]) -> str:
    """ "ViT-B/16: width 768, depth 12, patch 16, 224 px", and what else it has."""
    width, depth, patch = (architecture[key] for key in ("embed_dim", "depth", "patch_size"))
    sizes = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1408, 40): "g"}
    text = f"width {width}, depth {depth}, patch {patch}, {architecture['img_size']} px"
    text = f"ViT-{sizes[width, depth]}/{patch}: {text}" if (width, depth) in sizes else text
    text += f", {architecture['reg_tokens']} registers" if architecture["reg_tokens"] else ""
    text += ", LayerScale" if architecture["init_values"] is not None else ""
    return text + (", qk-norm" if architecture["qk_norm"] else "")


# What of a trunk is told by its tensors, and the words for it.
_TRUNK = {
    "embed_dim": "its width is",
    "depth": "its depth is",
    "patch_size": "its patch size is",
    "mlp_ratio": "its MLP ratio is",
    "class_token": "its class token is",
    "reg_tokens": "its number of registers is",
    "no_embed_class": "a positional embedding for patches alone is",
    "pre_norm": "its norm after the stem is",
    "init_values": "its LayerScale is",
    "qk_norm": "its qk-norm is",
    "qkv_bias": "its bias of qkv is",
    "proj_bias": "its bias of projections is",
}


def _words(value: Any) -> str:
    return {True: "there", False: "not"}[value] if isinstance(value, bool) else f"{value:g}"


def _what_else(tensors: Mapping[str, Tensor]) -> str:
    if any(name.startswith(("layers.0.blocks.", "stages.")) for name in tensors):
        return "it has stages (Swin or another hierarchy): take aim_swin_b for a Swin"
    if any("transformer.resblocks." in name for name in tensors):
        return "its names are those of a CLIP ViT: take a model aim_vit_*_clip"
    return what_else(tensors)
