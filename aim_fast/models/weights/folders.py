"""Weights in a folder, as the Hugging Face hub has them: which files hold them, and what the configuration tells.

model.safetensors                              one file (pytorch_model.bin and open_clip's names likewise)
model.safetensors.index.json                   the parts of one state dict, {"weight_map": {tensor: file}}
model-00001-of-00002.safetensors, …            its parts
config.json, preprocessor_config.json          activation, heads, norms; mean and std of pixels
open_clip_config.json                          the same of open_clip's repositories
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aim_fast.errors import WeightsError

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
_USUAL = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
# Of Hugging Face's model types, by what they begin with, what a configuration leaves out where it is as usual.
_DEFAULTS: dict[str, Any] = {"hidden_act": "gelu", "num_attention_heads": 12}
_OTHER_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {"hidden_act": "quick_gelu"},
    "xclip": {"hidden_act": "quick_gelu"},
    "siglip": {"hidden_act": "gelu_pytorch_tanh"},
    "dinov3": {"num_attention_heads": 6},
    "aimv2": {"hidden_act": "silu", "num_attention_heads": 8},
}
# Transformers' other names of GELU, exact and by tanh
_ACTIVATIONS = {
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
}


class Settings(NamedTuple):
    """What a configuration tells of a trunk and its tensors do not; None where it does not tell.

    ``activation`` may be one that AIM has not. ``mean``, ``std``: of the R, G and B channel, on the scale of 0 to 255.
    ``rope_theta``: the longest period of a rotation.
    """

    activation: str | None = None
    num_heads: int | None = None
    eps: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    rope_theta: float | None = None


def weights_in(folder: Path) -> Path:
    """The file of a folder that holds its weights, or the index of its parts.

    Raises WeightsError, saying what is there, where there is none or are several.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if usual := next((name for name in _USUAL if name in names), None):
        return folder / usual
    whole = [name for name in names if name.endswith((*_ENDINGS, ".index.json")) and not PART.fullmatch(name)]
    if len(whole) == 1:
        return folder / whole[0]
    parts = [name for name in names if PART.fullmatch(name)]
    if parts and not whole:
        return folder / parts[0]
    held = f"it holds {', '.join(whole[:4])}" if whole else _instead(folder, names)
    raise WeightsError(f"weights {folder} is a folder: name the file in it (.pt, .pth or .safetensors); {held}")


def _instead(folder: Path, names: Sequence[str]) -> str:
    if any(name.endswith(".distcp") for name in names):
        return "it is a distributed checkpoint: make it one file with torch.distributed.checkpoint's dcp_to_torch_save"
    if (folder / "checkpoints").is_dir():
        return "it looks like a run's folder, which eval, predict and convert take"
    other = [name for name in names if name.endswith((".h5", ".msgpack", ".onnx", ".gguf"))]
    return f"it holds {', '.join(other)}, not PyTorch's weights" if other else "it holds none"


def read_index(path: Path) -> dict[str, str]:
    """The part of every tensor of an index, by name, each part a file beside the index.

    Raises WeightsError for JSON that is no index, and for parts that are not there.
    """
    try:
        places = json.loads(path.read_text())["weight_map"]
        whole = all(isinstance(text, str) for item in places.items() for text in item) and bool(places)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        whole = False
    if not whole:
        raise WeightsError(f"{path} is not a weights file: expected a torch, TorchScript or safetensors file, or the "
                           "index of one in parts (weight_map)")  # fmt: skip
    parts = sorted(set(places.values()))
    if odd := [part for part in parts if Path(part).name != part]:
        raise WeightsError(f"{path}: its part {odd[0]!r} is no file beside it: download the folder again")
    if lost := [part for part in parts if not (path.parent / part).is_file()]:
        raise WeightsError(
            f"{path}: {len(lost)} of its {len(parts)} parts missing, {lost[0]} first: download them beside the index"
        )
    return places


def parts_of(path: Path) -> list[Path]:
    """The files of which ``path`` is one, by their names; none for a file that is whole.

    Raises WeightsError where some of them are missing.
    """
    match = PART.fullmatch(path.name)
    if match is None or int(match[3]) < 2:
        return []
    parts = [path.with_name(f"{match[1]}-{i:05d}-of-{match[3]}{match[4]}") for i in range(1, int(match[3]) + 1)]
    if lost := [part.name for part in parts if not part.is_file()]:
        raise WeightsError(
            f"weights file {path} is one part of {len(parts)}, and {lost[0]} is missing: download all into one folder"
        )
    return parts


def read_settings(folder: Path) -> Settings:
    """What a folder's configuration tells, of Hugging Face transformers, timm or open_clip; nothing without one.

    Raises WeightsError for one that is damaged.
    """
    names = ("config.json", "preprocessor_config.json", "open_clip_config.json")
    try:
        return _settings(*(_json(folder / name) for name in names))
    except (TypeError, ValueError, KeyError, AttributeError):
        there = " or ".join(name for name in names if (folder / name).exists())
        raise WeightsError(f"weights {folder}: {there} is damaged: download it again, or give the file alone") from None


def _settings(config: dict[str, Any], pixels: dict[str, Any], open_clip: dict[str, Any]) -> Settings:
    mean, std = pixels.get("image_mean"), pixels.get("image_std")
    if "model_cfg" in open_clip:
        activation: str | None = "quick_gelu" if open_clip["model_cfg"].get("quick_gelu") else "gelu"
        if "timm_model_name" in open_clip["model_cfg"].get("vision_cfg", {}):
            activation = None  # of the text tower alone
        preprocess = open_clip.get("preprocess_cfg", {})
        return Settings(activation, mean=_levels(preprocess.get("mean")), std=_levels(preprocess.get("std")))
    if "pretrained_cfg" in config:  # timm's
        mean, std = (config["pretrained_cfg"].get(name) for name in ("mean", "std"))
        return Settings(mean=_levels(mean), std=_levels(std))
    if "model_type" not in config:
        return Settings(mean=_levels(mean), std=_levels(std))
    kind = str(config["model_type"])
    usual = next((other for family, other in _OTHER_DEFAULTS.items() if kind.startswith(family)), {})
    told = _DEFAULTS | usual | (config.get("vision_config") or config)
    eps = told.get("layer_norm_eps", told.get("rms_norm_eps"))
    activation = "silu" if told.get("use_swiglu_ffn") else told["hidden_act"]
    return Settings(
        _ACTIVATIONS.get(activation, str(activation)),
        int(told["num_attention_heads"]),
        None if eps is None else float(eps),
        _levels(mean),
        _levels(std),
        None if told.get("rope_theta") is None else float(told["rope_theta"]),
    )


def _levels(values: Any) -> tuple[float, ...] | None:
    """Of the scale of 0 to 1 to that of 0 to 255."""
    return tuple(255.0 * value for value in values) if isinstance(values, list) and len(values) == 3 else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
