"""Weights of a Swin Transformer into AIM's: timm's and Microsoft's image checkpoints, and whole AIM checkpoints.

An image checkpoint's patch convolution [D, 3, p, p] becomes one over the frames of a patch by repeating it and dividing
by their number, so that a still clip gives the image's features. timm (0.9 and newer) keeps a stage's merging of
patches at the start of the next stage, Microsoft and AIM at the end of the one before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from aim_fast.errors import WeightsError
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_fast.models.weights.interpolation import interpolate_bias_table, interpolate_offsets
from aim_fast.models.weights.state_dict import strip_prefixes

_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.(.+)")
# Computed from sizes, by every model for itself.
_COMPUTED = ("relative_position_index", "attn_mask", "t_relative_coords")
_ADAPTERS = {"temporal": "T_Adapter", "spatial": "S_Adapter2", "joint": "S_Adapter"}


def fit_weights(model: Any, file: WeightsFile, source: str) -> Fit:
    """Inflate and resize what may be, and check the rest; the lines say what is not taken as it is.

    Raises WeightsError for a file without a Swin Transformer, of another architecture, or with adapters that the model
    lacks.
    """
    tower = swin_tower(file.tensors, source)
    theirs = infer_swin(tower, source)
    ours = {key: getattr(model, key) for key in ("embed_dim", "depths", "num_heads")}
    if any(theirs[key] != ours[key] for key in ours) or theirs["patch_size"][-1] != model.patch_size[-1]:
        raise WeightsError(
            f"{source} is of another architecture: it looks like {describe_swin(theirs)}; the model is "
            f"{describe_swin({**ours, 'window_size': model.window_size})}"
        )
    lines: list[str] = []
    adaptation = {name: tensor for name, tensor in tower.items() if model.is_adaptation(name)}
    tensors = {name: tensor for name, tensor in tower.items() if name not in adaptation}
    _inflate_patches(model, tensors, theirs, lines, source)
    _resize_windows(model, tensors, lines)
    state = model.state_dict()
    left = {name for name in state if name.endswith(_COMPUTED)}
    if "adapters" in theirs:
        kind = "aim"
        left |= _fit_adaptation(model, adaptation, theirs, lines, source)
        tensors |= {name: tensor for name, tensor in adaptation.items() if name not in left}
    else:
        kind = "timm"
        left |= {name for name in state if model.is_adaptation(name)}
    return Fit(tensors, left, kind, lines)


def swin_tower(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a Swin Transformer in AIM's names, without an image classifier and without computed tensors.

    Raises WeightsError where there is none, saying what is there instead.
    """
    tensors = strip_prefixes(tensors, where)
    if not {"patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight"} <= tensors.keys():
        raise WeightsError(f"{where} holds no Swin Transformer: {_what_else(tensors)}")
    for name in tensors:
        if re.search(r"\.(logit_scale|cpb_mlp|q_bias)", name):
            raise WeightsError(
                f"{where} is a Swin V2 ({name}): this model takes Swin, such as swin_base_patch4_window7"
            )
    first = "layers.0.downsample.reduction.weight"
    late = first not in tensors and any(".downsample." in name for name in tensors)
    tower = {}
    for name, tensor in tensors.items():
        if name.startswith("head.") or name.endswith(_COMPUTED):
            continue
        if late and (match := re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name)):
            name = f"layers.{int(match[1]) - 1}.downsample.{match[2]}"
        tower[name] = tensor
    return tower


def infer_swin(tower: Mapping[str, Tensor], where: str = "the state dict") -> dict[str, Any]:
    """Arguments of ``create_model`` that fit a tower in AIM's names.

    ``embed_dim, depths, num_heads, window_size, patch_size`` always; ``adapters, adapter_ratio, num_frames,
    num_classes`` where the tensors tell. ``window_size`` is that of the first stage. Raises WeightsError where the
    tables are no square windows'.
    """
    blocks = [match for match in map(_BLOCK.fullmatch, tower) if match]
    stages = 1 + max(int(match[1]) for match in blocks)
    depths = tuple(1 + max((int(m[2]) for m in blocks if int(m[1]) == i), default=-1) for i in range(stages))
    heads, window = [], 0
    for stage in range(stages):
        table = tower.get(f"layers.{stage}.blocks.0.attn.relative_position_bias_table")
        span = math.isqrt(len(table)) if table is not None and table.ndim == 2 else 0
        if table is None or span % 2 == 0 or span**2 != len(table):
            raise WeightsError(
                f"{where} has no bias table of square windows in stage {stage + 1}: Swin for images is what fits (a "
                "Video Swin has tables of windows in time as well)"
            )
        heads.append(table.shape[1])
        window = window or (span + 1) // 2
    patches = tower["patch_embed.proj.weight"]
    found: dict[str, Any] = {
        "embed_dim": patches.shape[0],
        "depths": depths,
        "num_heads": tuple(heads),
        "window_size": window,
        "patch_size": (patches.shape[2] if patches.ndim == 5 else 1, *patches.shape[-2:]),
    }
    kinds = {match[3]: tower[match[0]] for match in blocks if match[1] == "0"}
    places = [place for place, name in _ADAPTERS.items() if f"{name}.D_fc1.weight" in kinds]
    if places:
        hidden, channels = kinds[f"{_ADAPTERS[places[0]]}.D_fc1.weight"].shape
        found |= {"adapters": places, "adapter_ratio": hidden / channels}
    if (table := kinds.get("attn.temporal_position_bias_table")) is not None:
        found["num_frames"] = (len(table) + 1) // 2 * found["patch_size"][0]
    if "fc_cls.weight" in tower:
        found["num_classes"] = tower["fc_cls.weight"].shape[0]
    return found


def describe_swin(architecture: Mapping[str, Any]) -> str:
    """ "width 128, depths 2-2-18-2, heads 4-8-16-32, window 7", with timm's name for it where it has one."""
    names = {(96, 6): "swin_tiny", (96, 18): "swin_small", (128, 18): "swin_base", (192, 18): "swin_large"}
    width, depths, heads = (architecture[key] for key in ("embed_dim", "depths", "num_heads"))
    name = names.get((width, depths[2])) if len(depths) == 4 else None
    depths, heads = ("-".join(map(str, numbers)) for numbers in (depths, heads))
    text = f"width {width}, depths {depths}, heads {heads}, window {architecture['window_size']}"
    return f"{name}: {text}" if name else text


def _inflate_patches(
    model: Any, tensors: dict[str, Tensor], theirs: Mapping[str, Any], lines: list[str], source: str
) -> None:
    name, frames = "patch_embed.proj.weight", model.patch_size[0]
    weight = tensors[name]
    if weight.ndim == 4:
        tensors[name] = (weight[:, :, None] / frames).expand(-1, -1, frames, -1, -1)
        lines.append(f"patch embedding inflated from images to {frames} frames a patch")
    elif weight.shape[2] != frames:
        raise WeightsError(f"{source} has patches of {weight.shape[2]} frames: make the model with patch_size={frames}")


def _resize_windows(model: Any, tensors: dict[str, Tensor], lines: list[str]) -> None:
    changed = set()
    for name, own in model.state_dict().items():
        table = tensors.get(name)
        if name.endswith("relative_position_bias_table") and table is not None and len(table) != len(own):
            old, new = ((math.isqrt(len(rows)) + 1) // 2 for rows in (table, own))
            tensors[name] = interpolate_bias_table(table, new)
            changed.add(f"{old} × {old} to {new} × {new}")
    lines += [f"position biases interpolated from windows of {change}" for change in sorted(changed)]


def _fit_adaptation(
    model: Any, tensors: dict[str, Tensor], theirs: Mapping[str, Any], lines: list[str], source: str
) -> set[str]:
    """Names of the model that stay at their initialisation; ``tensors`` and ``lines`` are brought up to date."""
    places = theirs["adapters"]
    if not set(places) <= set(model.adapters):
        raise WeightsError(f"{source} has adapters that the model lacks: make the model with adapters={places}")
    if int(theirs["adapter_ratio"] * model.embed_dim) != int(model.embed_dim * model.adapter_ratio):
        ratio = theirs["adapter_ratio"]
        raise WeightsError(f"{source} has adapters of another width: make the model with adapter_ratio={ratio}")
    frames = theirs.get("num_frames", model.num_frames)
    if frames != model.num_frames:
        rows = 2 * (model.num_frames // model.patch_size[0]) - 1
        for name, tensor in tensors.items():
            if name.endswith("temporal_position_bias_table"):
                tensors[name] = interpolate_offsets(tensor, rows)
        lines.append(f"temporal position biases interpolated from {frames} to {model.num_frames} frames")
    left = set()
    for place, kind in _ADAPTERS.items():
        if place not in places:
            marks = (f".{kind}.", "temporal_position_bias_table") if place == "temporal" else (f".{kind}.",)
            own = {name for name in model.state_dict() if any(mark in name for mark in marks)}
            if own:
                left |= own
                lines.append(f"{source} has no {kind}: it is left at its initialisation")
    if (classes := theirs.get("num_classes")) != model.num_classes:
        left |= {"fc_cls.weight", "fc_cls.bias"}
        why = "has no head" if classes is None else f"has a head of {classes} classes, the model of {model.num_classes}"
        lines.append(f"{source} {why}: the head is left at its initialisation")
    return left


def _what_else(tensors: Mapping[str, Tensor]) -> str:
    hints = {
        r".*_Adapter2?\.D_fc1\.weight": "it holds adapters without their trunk (a run's adapters: use the run itself)",
        r"(.*\.)?transformer\.resblocks\.": "its names are those of a CLIP ViT: take a model aim_vit_*_clip",
        r"blocks\.0\.(attn|norm1)\.": "its names are those of timm's ViT: take timm's swin_base_patch4_window7_224",
        r"features\.\d": "its names are those of torchvision: take timm's or Microsoft's file",
        r"(.*\.)?encoder\.layers?\.": "its names are those of Hugging Face transformers: take timm's file",
    }
    for pattern, hint in hints.items():
        if any(re.match(pattern, name) for name in tensors):
            return hint
    return f"its first names are {', '.join(sorted(tensors)[:3])}" if tensors else "it is empty"
