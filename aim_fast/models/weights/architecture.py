"""What a state dict says about the model it came from: width, depth, patch, resolution, frames, adapters, classes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from aim_fast.errors import WeightsError
from aim_fast.models.weights.adaptation import adapted_by, told_by
from aim_fast.models.weights.state_dict import strip_prefixes

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
ADAPTERS = {"spatial": "S_Adapter", "temporal": "T_Adapter", "joint": "MLP_Adapter"}


def visual_tower(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The image Transformer's tensors under their bare names, without the text side and CLIP's ``proj``.

    Takes a whole CLIP (``visual.…`` beside a text tower), a bare tower, or an AIM model, with the prefixes that
    wrappers leave. Raises WeightsError where there is no CLIP ViT, saying what is there instead.
    """
    tensors = strip_prefixes(tensors, where)
    if any(name.startswith("visual.") for name in tensors):
        kept = ("visual.", "side.", "fc_cls.")  # what methods beside the trunk have, and their classifier
        tensors = {name.removeprefix("visual."): t for name, t in tensors.items() if name.startswith(kept)}
    unread = re.compile(r"proj|.*\.num_batches_tracked")  # the projection, and what batch norms count
    tower = {name: tensor for name, tensor in tensors.items() if not unread.fullmatch(name)}
    if "conv1.weight" not in tower or not any(_BLOCK.match(name) for name in tower):
        raise WeightsError(f"{where} holds no CLIP ViT image tower: {what_else(tower)}")
    return tower


def infer_architecture(tensors: Mapping[str, Tensor], where: str = "the state dict") -> dict[str, Any]:
    """Arguments of ``create_model`` that fit a state dict.

    ``embed_dim, depth, patch_size, img_size`` always; ``mlp_ratio`` where it is not 4; ``num_frames, num_tadapter,
    adapters, adapter_layers, adapter_ratio, num_classes`` where the tensors tell. Heads, scale, droppath and activation
    leave no trace in tensors. Raises WeightsError where there is no CLIP ViT.
    """
    tower = visual_tower(tensors, where)
    blocks = [match for match in map(_BLOCK.fullmatch, tower) if match]
    width, patch = tower["conv1.weight"].shape[0], tower["conv1.weight"].shape[-1]
    positions = tower.get("positional_embedding")
    grid = math.isqrt(max(len(positions) - 1, 0)) if positions is not None and positions.ndim == 2 else 0
    if positions is None or grid < 1 or grid * grid != len(positions) - 1:
        raise WeightsError(f"{where} has no positional embedding of one class token and a square grid")
    found: dict[str, Any] = {
        "embed_dim": width,
        "depth": 1 + max(int(match[1]) for match in blocks),
        "patch_size": patch,
        "img_size": grid * patch,
    }
    hidden = next((len(tower[m[0]]) for m in blocks if m[2] == "mlp.c_fc.weight"), 4 * width)
    if hidden != 4 * width:
        found["mlp_ratio"] = width_ratio(width, hidden)
    return found | adaptation_arguments(tower, _BLOCK)


def adaptation_arguments(tensors: Mapping[str, Tensor], block: re.Pattern[str]) -> dict[str, Any]:
    """``adapters, adapter_layers, adapter_ratio, num_tadapter, num_frames, num_classes``, where the tensors tell; of
    another method than AIM its own in place of the first four.

    ``block`` matches the whole name of a block's tensor: its number, and the name within the block.
    """
    found = told_by(tensors, block)
    blocks = [match for match in map(block.fullmatch, tensors) if match] if adapted_by(tensors) == "aim" else []
    kinds = {m[2].removesuffix(".D_fc1.weight"): tensors[m[0]] for m in blocks}
    places = [place for place, kind in ADAPTERS.items() if kind in kinds]
    if places:
        hidden, channels = kinds[ADAPTERS[places[0]]].shape
        layers = {int(m[1]) for m in blocks if m[2].startswith(tuple(f"{ADAPTERS[place]}.D_fc" for place in places))}
        found |= {"adapters": places, "adapter_layers": sorted(layers), "adapter_ratio": width_ratio(channels, hidden)}
    if "T_Adapter" in kinds:
        found["num_tadapter"] = 2 if "T_Adapter_in" in kinds else 1
    if "temporal_embedding" in tensors:
        found["num_frames"] = tensors["temporal_embedding"].shape[1]
    if "fc_cls.weight" in tensors:
        found["num_classes"] = len(tensors["fc_cls.weight"])
    return found


def check_structure(tower: Mapping[str, Tensor], normalised_stem: bool, where: str) -> None:
    """Raises WeightsError, naming the structure, for a tower that is no plain CLIP ViT.

    ``normalised_stem``: whether the model has CLIP's norm after the stem, which CLIPA has not.
    """
    odd = [structure for part, structure in _STRUCTURES.items() if any(part in f".{name}" for name in tower)]
    if odd:
        raise WeightsError(f"{where} has {' and '.join(odd)}, which AIM on a CLIP ViT has not")
    if any(name.startswith("ln_pre.") for name in tower) != normalised_stem:
        kinds = ("a CLIPA (no norm after the stem)", "a CLIP with a norm after the stem (ln_pre)")
        theirs, ours = kinds if normalised_stem else kinds[::-1]
        raise WeightsError(f"{where} is {theirs}, the model {ours}: choose the model that open_clip names for the file")


# Parts of names that tell a structure.
_STRUCTURES = {
    ".attn_pool": "attention pooling",
    ".ls_1.": "LayerScale",
    ".ln_q.": "norms of queries and keys",
    ".bn1.": "a convolutional stem",
}


def describe(architecture: Mapping[str, Any]) -> str:
    """ "width 768, depth 12, patch 16, 224 px", with CLIP's name for it where it has one."""
    width, depth, patch = (architecture[key] for key in ("embed_dim", "depth", "patch_size"))
    size = {(768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1408, 40): "g", (1664, 48): "bigG"}.get((width, depth))
    text = f"width {width}, depth {depth}, patch {patch}, {architecture['img_size']} px"
    if (mlp := architecture.get("mlp_ratio", 4.0)) != 4.0:
        text += f", MLP of {int(width * mlp)}"
    return f"ViT-{size}/{patch}: {text}" if size else text


def usual_heads(width: int) -> int:
    """The number of heads that CLIPs of a width have, which leaves no trace in tensors: 64 channels a head, but more
    in the largest (open_clip's configurations of ViT-H, g, bigG and e).
    """
    return max(width // {1280: 80, 1408: 88, 1664: 104, 1792: 112}.get(width, 64), 1)


def width_ratio(width: int, hidden: int) -> float:
    """The ratio of which ``int(width * ratio)`` is ``hidden``."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


_OF_RUN = "of a run: use the run itself"


def what_else(names: Mapping[str, Tensor]) -> str:
    """What tensors are that were none of what was looked for, by their names."""
    hints = {
        r".*_Adapter(_in)?\.D_fc1\.weight": f"it holds adapters without their trunk ({_OF_RUN})",
        r".*\.adapter_pre_(attn|mlp)\.": f"it holds ST-Adapter's bottlenecks without their trunk ({_OF_RUN})",
        r".*\.lora\.[qv]_(up|down)": f"it holds LoRA's changes without their trunk ({_OF_RUN})",
        r"side\.": f"it holds a network beside a trunk without that ({_OF_RUN})",
        r"(.*\.)?layer1\.0\.conv1\.": "it looks like a ResNet",
        r"(.*\.)?(vision_model\.)?encoder\.(layers?|block)\.": "its names are those of Hugging Face transformers, "
        "but of no model known here with its patch embedding: take the file of timm or open_clip",
        r"(.*\.)?attn_pool\.latent": "it is a SigLIP (attention pooling, no class token): take "
        "--model timm:vit_base_patch16_siglip_224, or what fits it",
        r".*\.lora_[AB]\.": "it holds LoRA adapters without their trunk: merge them into it with PEFT first",
        r"(.*\.)?blocks\.0\.(attn|norm1)\.": "its names are those of timm: take aim_vit_b16_in21k or --model timm:NAME",
        r"fc_cls\.": f"it holds a classifier without its trunk ({_OF_RUN})",
    }
    for pattern, hint in hints.items():
        if any(re.match(pattern, name) for name in names):
            return hint
    return f"its first names are {', '.join(sorted(names)[:3])}" if names else "nothing is left beside the text tower"
