"""Weights of a CLIP ViT, plain or adapted by AIM, into a model with CLIP's names."""

from __future__ import annotations

from typing import Any

from aim_fast.errors import WeightsError
from aim_fast.models.weights.adaptation import check_method, fit_adaptation, is_adapted
from aim_fast.models.weights.architecture import check_structure, describe, infer_architecture, visual_tower
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_fast.models.weights.interpolation import interpolate_positions


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
    check_method(model, tower, source, file.tensors)
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
    if is_adapted(model, tower):
        kind = "aim"
        adaptation_lines, left = fit_adaptation(model, adaptation, theirs, "transformer.resblocks.", source)
        lines += adaptation_lines
        if model.method.beside:  # which do not read the last norm: their authors' files may lack it
            left |= {f"ln_post.{part}" for part in ("weight", "bias")} - tensors.keys()
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
