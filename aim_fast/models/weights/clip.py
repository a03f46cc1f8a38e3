"""Weights of a CLIP ViT, plain or adapted by AIM, into a model with CLIP's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from aim_fast.errors import WeightsError
from aim_fast.models.weights.architecture import check_structure, describe, infer_architecture, visual_tower
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_fast.models.weights.interpolation import interpolate_frames, interpolate_positions


def fit_weights(model: Any, file: WeightsFile, source: str) -> Fit:
    """Resize what may be resized and check the rest; the lines say what is not taken as it is.

    Raises WeightsError for a file without a CLIP ViT, of another architecture, or with adapters that the model lacks.
    """
    tower = visual_tower(file.tensors, source)
    theirs = {"mlp_ratio": 4.0} | infer_architecture(tower, source)
    ours = {key: getattr(model, key) for key in ("embed_dim", "depth", "patch_size", "img_size", "mlp_ratio")}
    hidden = [int(sizes["embed_dim"] * sizes["mlp_ratio"]) for sizes in (theirs, ours)]
    if hidden[0] != hidden[1] or any(theirs[key] != ours[key] for key in ("embed_dim", "depth", "patch_size")):
        raise WeightsError(
            f"{source} is of another architecture: it looks like {describe(theirs)}; the model is {describe(ours)}"
        )
    if "adapters" in theirs and not hasattr(model, "adapters"):
        raise WeightsError(f"{source} is an AIM checkpoint, with adapters: use an aim_vit model, or plain CLIP weights")
    if hasattr(model, "adapters") and any(".t_attn." in name for name in tower):
        raise WeightsError(f"{source} is a TimeSformer: use --model timesformer_b16_clip or its L/14, or plain CLIP")
    check_structure(tower, "ln_pre.weight" in model.state_dict(), source)
    lines = []
    adaptation = {name: tensor for name, tensor in tower.items() if model.is_adaptation(name)}
    tensors = {name: tensor for name, tensor in tower.items() if name not in adaptation}
    if theirs["img_size"] != ours["img_size"]:
        positions = interpolate_positions(tensors["positional_embedding"], len(model.positional_embedding))
        tensors["positional_embedding"] = positions
        sides = [size // ours["patch_size"] for size in (theirs["img_size"], ours["img_size"])]
        lines.append(
            f"positional embedding interpolated from {sides[0]}×{sides[0]} patches ({theirs['img_size']} px) "
            f"to {sides[1]}×{sides[1]} ({ours['img_size']} px)"
        )
    if "adapters" in theirs:
        kind = "aim"
        adaptation_lines, left = _fit_adaptation(model, adaptation, theirs, source)
        lines += adaptation_lines
        tensors |= {name: tensor for name, tensor in adaptation.items() if name not in left}
    else:
        kind = "clip"
        left = {name for name in model.state_dict() if model.is_adaptation(name)}
        if adaptation:
            lines.append(f"not taken from {source}, which has no adapters: {', '.join(sorted(adaptation))}")
    activation = file.activation or ("quick_gelu" if kind == "aim" else None)
    if activation is None:
        lines.append(
            f"{source} does not say its activation: {model.activation} is used (OpenAI's weights need quick_gelu; most "
            "others in open_clip's list need gelu)"
        )
    elif activation != model.activation:
        lines.append(f"activation set to {activation}, with which {source} was trained")
    return Fit(tensors, left, kind, lines, activation)


def _fit_adaptation(
    model: Any, tensors: dict[str, Tensor], theirs: Mapping[str, Any], source: str
) -> tuple[list[str], set[str]]:
    """Lines for a reader, and the names of the model that stay at their initialisation.

    A temporal embedding of another length is resized in ``tensors``. An adapter that the model lacks would change what
    the file computes, so it is an error; one that the file lacks adds nothing while it is at its initialisation.
    """
    places, hidden = theirs["adapters"], int(theirs["adapter_ratio"] * model.embed_dim)
    if not set(places) <= set(model.adapters):
        raise WeightsError(f"{source} has adapters that the model lacks: make the model with adapters={places}")
    if theirs.get("num_tadapter") == 2 and model.num_tadapter == 1:
        raise WeightsError(f"{source} has a second temporal adapter (T_Adapter_in): make the model with num_tadapter=2")
    if hidden != int(model.embed_dim * model.adapter_ratio):
        ratio = theirs["adapter_ratio"]
        raise WeightsError(f"{source} has adapters of {hidden} hidden units: make the model with adapter_ratio={ratio}")
    layers, own_layers = set(theirs["adapter_layers"]), set(model.adapter_layers)
    if not layers <= own_layers:
        numbers = ",".join(map(str, sorted(layers)))
        raise WeightsError(f"{source} has adapters in other blocks: make the model with adapter_layers={numbers}")
    lines, left = [], set()
    if layers < own_layers:
        bare = sorted(own_layers - layers)
        prefixes = tuple(f"transformer.resblocks.{number}." for number in bare)
        left |= {name for name in model.state_dict() if "_Adapter" in name and name.startswith(prefixes)}
        lines.append(f"{source} has no adapters in block {', '.join(map(str, bare))}: left at their initialisation")
    frames = theirs.get("num_frames", model.num_frames)
    if frames != model.num_frames:
        tensors["temporal_embedding"] = interpolate_frames(tensors["temporal_embedding"], model.num_frames)
        lines.append(f"temporal embedding interpolated from {frames} to {model.num_frames} frames")
    for kind in ("S_Adapter", "T_Adapter", "T_Adapter_in", "MLP_Adapter"):
        own = {name for name in model.state_dict() if f".{kind}." in name}
        if own and not own & tensors.keys():
            left |= own
            lines.append(f"{source} has no {kind}: it is left at its initialisation")
    if (classes := theirs.get("num_classes")) != model.num_classes:
        left |= {"fc_cls.weight", "fc_cls.bias"}
        why = "has no head" if classes is None else f"has a head of {classes} classes, the model of {model.num_classes}"
        lines.append(f"{source} {why}: the head is left at its initialisation")
    return lines, left
