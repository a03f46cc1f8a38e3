"""Image weights into a model: what ``--weights`` takes, and the hash that ties adapters to their trunk.

Sources: an OpenAI CLIP ``.pt`` (TorchScript archive or state dict), an open_clip tag (``open_clip:ViT-B-16/openai``) or
file, a safetensors or state-dict file of a visual tower, a published AIM checkpoint, or the word ``random``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from aim_fast.errors import WeightsError
from aim_fast.models.aim_vit_clip import AIMViTCLIP
from aim_fast.models.architecture import describe, infer_architecture, visual_tower
from aim_fast.models.interpolation import interpolate_frames, interpolate_positions
from aim_fast.models.open_clip_tags import TAG_PREFIX, fetch_tag
from aim_fast.models.state_dict import load_strictly
from aim_fast.models.weight_files import WeightsFile, read_weights

OPTIONS = (
    "an OpenAI CLIP .pt file, an open_clip tag (open_clip:ViT-B-16/openai) or file, a safetensors or state-dict file "
    "of a CLIP visual tower, a published AIM checkpoint, or the word random"
)


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded.

    ``source`` as given; ``kind`` "clip", "aim" or "random"; ``sha256`` of the frozen trunk (:func:`trunk_sha256`);
    ``lines`` for a reader, one sentence each: what was interpolated, left at its initialisation, or is not known.
    """

    source: str
    kind: str
    sha256: str
    lines: list[str] = field(default_factory=list)


def load_weights(model: AIMViTCLIP, source: str | Path | None, *, seed: int = 0) -> WeightsReport:
    """Fill the model's trunk from ``source`` (see the module), and adapters and head too from an AIM checkpoint.

    Positional and temporal embeddings of another size are interpolated; the model's activation is set to the one that
    the source was trained with, where the source tells. ``"random"`` initialises the WHOLE model from ``seed``,
    whatever the state of torch's generators, which it leaves alone. Raises WeightsError when there is no source, and
    for a file that cannot be read or is of another architecture; the model is then left as it was.
    """
    source = "" if source is None else str(source)
    if not source:
        raise WeightsError(f"no weights given, and a frozen random trunk learns little: pass {OPTIONS}")
    if source == "random":
        _initialise(model, seed)
        line = f"the trunk is RANDOM (seed {seed}), as asked: features mean nothing before it is trained"
        return WeightsReport(source, "random", trunk_sha256(model), [line])
    file = _open(source)
    tower = visual_tower(file.tensors, source)
    architecture = infer_architecture(tower, source)
    is_aim = "adapters" in architecture
    lines = _fit(model, tower, architecture, source)
    activation = file.activation or ("quick_gelu" if is_aim else None)
    if activation is None:
        lines.append(
            f"{source} does not say its activation: {model.activation} is used (OpenAI's weights need quick_gelu; most "
            "others in open_clip's list need gelu)"
        )
    elif activation != model.activation:
        lines.append(f"activation set to {activation}, with which {source} was trained")
        model.activation = activation
    return WeightsReport(source, "aim" if is_aim else "clip", trunk_sha256(model), lines)


def trunk_names(model: AIMViTCLIP) -> set[str]:
    """Names of the image Transformer's tensors: all but adapters, ``temporal_embedding`` and ``fc_cls``."""
    return {name for name in model.state_dict() if not _is_adaptation(name)}


def trunk_sha256(model: AIMViTCLIP) -> str:
    """SHA-256 (hex) over the model's frozen parameters in name order: names, shapes and fp32 values."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(f"{name}{list(parameter.shape)}".encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def save_trunk(model: AIMViTCLIP, path: str | Path) -> None:
    """Write the image Transformer alone as safetensors, in the names that :func:`load_weights` reads."""
    state = model.state_dict()
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(trunk_names(model))}
    save_file(tensors, path, metadata={"activation": model.activation})


def _is_adaptation(name: str) -> bool:
    return "_Adapter" in name or name == "temporal_embedding" or name.startswith("fc_cls.")


def _initialise(model: AIMViTCLIP, seed: int) -> None:
    # Drawn on the CPU whatever the model's device, so that one seed is one model everywhere.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(**model.config)
    load_strictly(model, fresh.state_dict(), "random")


def _open(source: str) -> WeightsFile:
    if not source.startswith(TAG_PREFIX):
        return read_weights(source)
    path, activation = fetch_tag(source)
    return WeightsFile(read_weights(path).tensors, activation)


def _fit(model: AIMViTCLIP, tower: Mapping[str, Tensor], theirs: Mapping[str, Any], source: str) -> list[str]:
    """Resize what may be resized, check the rest, and copy; the lines say what was not taken as it was."""
    ours = {key: getattr(model, key) for key in ("embed_dim", "depth", "patch_size", "img_size")}
    if any(theirs[key] != ours[key] for key in ("embed_dim", "depth", "patch_size")):
        raise WeightsError(
            f"{source} is of another architecture: it looks like {describe(theirs)}; the model is {describe(ours)}"
        )
    lines = []
    tensors = {name: tensor for name, tensor in tower.items() if not _is_adaptation(name)}
    rest = {name: tensor for name, tensor in tower.items() if _is_adaptation(name)}
    wanted = trunk_names(model)
    if theirs["img_size"] != ours["img_size"]:
        positions = interpolate_positions(tensors["positional_embedding"], len(model.positional_embedding))
        tensors["positional_embedding"] = positions
        sides = [size // ours["patch_size"] for size in (theirs["img_size"], ours["img_size"])]
        lines.append(
            f"positional embedding interpolated from {sides[0]}×{sides[0]} patches ({theirs['img_size']} px) "
            f"to {sides[1]}×{sides[1]} ({ours['img_size']} px)"
        )
    if "adapters" in theirs:
        adaptation_lines, left = _fit_adaptation(model, rest, theirs, source)
        lines += adaptation_lines
        wanted = model.state_dict().keys() - left
        tensors |= {name: tensor for name, tensor in rest.items() if name not in left}
    elif rest:
        lines.append(f"not taken from {source}, which has no adapters: {', '.join(sorted(rest))}")
    load_strictly(model, tensors, source, among=wanted)
    return lines


def _fit_adaptation(
    model: AIMViTCLIP, tensors: dict[str, Tensor], theirs: Mapping[str, Any], source: str
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
    lines, left = [], set()
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
