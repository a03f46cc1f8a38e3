"""What of an adapted checkpoint fits a model: adapters, the temporal embedding and the head, resized or left out.

An adapter that the model lacks would change what the file computes, so it is an error; one that the file lacks adds
nothing while it is at its initialisation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from aim_fast.errors import WeightsError
from aim_fast.models.method import Method
from aim_fast.models.methods import METHODS
from aim_fast.models.weights.interpolation import interpolate_frames

_KINDS = ("S_Adapter", "T_Adapter", "T_Adapter_in", "MLP_Adapter")  # AIM's
_ADDED = re.compile(r"\.(\w*_Adapter\w*|t_attn|t_norm)\.")  # what a method added, by its usual names


def fit_adaptation(
    model: Any, tensors: dict[str, Tensor], theirs: Mapping[str, Any], blocks: str, source: str
) -> tuple[list[str], set[str]]:
    """Lines for a reader, and the names of the model that stay at their initialisation.

    ``theirs``: the arguments of which the file's tensors tell; ``blocks``: what the names of the model's blocks begin
    with. A temporal embedding of another length is resized in ``tensors``. Raises WeightsError for adapters that the
    model lacks.
    """
    own = {name for name in model.state_dict() if model.is_adaptation(name)}
    aims = "adapters" in theirs and model.method.name == "aim"
    _check_told(model, theirs, source)
    lines, left = _fit_adapters(model, tensors, theirs, blocks, source) if aims else ([], set())
    frames = theirs.get("num_frames", model.num_frames)
    if frames != model.num_frames and model.method.beside:
        raise WeightsError(f"{source} is of {frames} frames a clip: make the model with num_frames={frames}")
    if frames != model.num_frames:
        tensors["temporal_embedding"] = interpolate_frames(tensors["temporal_embedding"], model.num_frames)
        lines.append(f"temporal embedding interpolated from {frames} to {model.num_frames} frames")
    classifier = {name for name in own if name.startswith("fc_cls.")}
    if (classes := theirs.get("num_classes")) != model.num_classes and classifier:
        left |= classifier
        why = "has no head" if classes is None else f"has a head of {classes} classes, the model of {model.num_classes}"
        lines.append(f"{source} {why}: the head is left at its initialisation")
    left |= {name for name in own if name.startswith("attentive_")} - tensors.keys()
    return lines, left


def _fit_adapters(
    model: Any, tensors: dict[str, Tensor], theirs: Mapping[str, Any], blocks: str, source: str
) -> tuple[list[str], set[str]]:
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
    lines: list[str] = []
    left: set[str] = set()
    if layers < own_layers:
        bare = sorted(own_layers - layers)
        prefixes = tuple(f"{blocks}{number}." for number in bare)
        left |= {name for name in model.state_dict() if "_Adapter" in name and name.startswith(prefixes)}
        lines.append(f"{source} has no adapters in block {', '.join(map(str, bare))}: left at their initialisation")
    for kind in _KINDS:
        own = {name for name in model.state_dict() if f".{kind}." in name}
        if own and not own & tensors.keys():
            left |= own
            lines.append(f"{source} has no {kind}: it is left at its initialisation")
    return lines, left


def check_method(model: Any, names: Mapping[str, Tensor], source: str, beside: Iterable[str] = ()) -> None:
    """Raises WeightsError for a checkpoint of another method than the model's; ``beside``: names beside its trunk's."""
    own, found = model.state_dict().keys(), adapted_by([*names, *beside])
    added = {name: match[1] for name in names if (match := _ADDED.search(name))}
    if model.method.name == "aim":  # of which a model may have less, or more
        odd = [name for name, kind in added.items() if kind not in _KINDS]
    else:
        odd = [name for name in added if name not in own]
    if found not in (None, "aim", model.method.name) or (found == "aim" and any(added[name] in _KINDS for name in odd)):
        raise WeightsError(f"{source} is {METHODS[str(found)].in_words()}")
    if odd and found != model.method.name:
        raise WeightsError(
            f"{source} holds {odd[0]}, which the method {model.method.name} has not: give its own --method"
        )


def is_adapted(model: Any, names: Mapping[str, Tensor]) -> bool:
    """Whether a file holds more than a trunk: what a method adds, or all that ``model`` has beside its trunk.

    Of a probe and of full fine-tuning that is the head alone.
    """
    own = {name for name in model.state_dict() if model.is_adaptation(name)}
    return adapted_by(names) is not None or (bool(own) and own <= names.keys())


def adapted_by(names: Iterable[str]) -> str | None:
    """The method of a checkpoint that holds more than a trunk, by its names; None for a trunk alone."""
    names = list(names)  # others call adapters as AIM does, which is asked last
    return next((method.name for method in reversed(METHODS.values()) if method.recognises(names)), None)


def told_by(names: Mapping[str, Tensor], block: re.Pattern[str]) -> dict[str, Any]:
    """The arguments of its own of which a checkpoint of a method tells; ``block`` matches the whole name of a block's
    tensor: its number, and the name within the block."""
    method = METHODS.get(adapted_by(names) or "", Method)
    matches = [match for match in map(block.fullmatch, names) if match]
    beside = {(-1, name): tensor for name, tensor in names.items() if name.startswith("side.")}
    return method.told({(int(match[1]), match[2]): names[match[0]] for match in matches} | beside)


def _check_told(model: Any, theirs: Mapping[str, Any], source: str) -> None:
    """Raises WeightsError for a checkpoint of another method's own arguments than the model's; AIM's may differ."""
    for name in sorted(set(model.method.names()) & theirs.keys() if model.method.name != "aim" else ()):
        ours = model.config[name]
        if ours != theirs[name]:
            words = theirs[name]
            words = ",".join(map(str, words)) if isinstance(words, list) else words
            raise WeightsError(f"{source} is of another {model.method.name}: make the model with {name}={words}")
