"""State dicts under published names: prefixes off, every difference named, and all of it loaded or nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from aim_fast.errors import WeightsError
from aim_fast.models.methods import METHODS
from aim_fast.models.weights.files import read_weights
from aim_fast.models.weights.flax import from_flax
from aim_fast.models.weights.hugging_face import from_hugging_face
from aim_fast.models.weights.names import choose, trunk_roots, unwrap

_CLASSIFIERS = {"patch_embed4.proj.": "head"}  # of UniFormer
_AVERAGED = "n_averaged"  # the count that torch's AveragedModel keeps beside its module


def load_checkpoint(model: nn.Module, checkpoint: str | Path | Mapping[str, Tensor]) -> None:
    """Load a whole published (or own) checkpoint into ``model``, strictly.

    ``checkpoint`` is a ``.pth``, ``.pt`` or ``.safetensors`` file or a state dict, its names with or without prefixes
    (``module.``, ``backbone.`` and ``cls_head.`` among them), below a top-level ``state_dict`` or not. Tensors are
    converted to the dtype and device of the model's. Raises WeightsError that names EVERY missing and unexpected tensor
    and every difference of shape; the model is then left as it was.
    """
    if isinstance(checkpoint, Mapping):
        nested = checkpoint.get("state_dict", checkpoint)
        where, tensors = "the state dict", dict(nested) if isinstance(nested, Mapping) else {}
    else:
        where, tensors = str(checkpoint), read_weights(checkpoint).tensors
    if tensors.keys() == model.state_dict().keys():
        return load_strictly(model, tensors, where)
    trunk, beside = split_trunk(tensors, where)
    load_strictly(model, beside | trunk, where)


def strip_prefixes(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Names without the marks of wrappers, and without the prefix of the trunk (``backbone.``, ``model.``) and of the
    head (``cls_head.``); those of Hugging Face in CLIP's or timm's. WeightsError where two become one."""
    return split_trunk(tensors, where)[0]


def split_trunk(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(:func:`strip_prefixes`, what lies beside the trunk under other prefixes).

    Raises WeightsError for two trunks of which neither is the usual one.
    """
    names = _renamed([unwrap(name) for name in tensors])
    for part, classifier in _CLASSIFIERS.items():
        if any(part in name for name in names):
            names = [re.sub(rf"^((?:.+\.)?){classifier}\.(?=weight$|bias$)", r"\1fc_cls.", name) for name in names]
    roots = [root for root in trunk_roots(names) if root != "clipmodel."]  # where PromptCLIP itself has its trunk
    root = choose(roots, where) if roots and "" not in roots else ""
    inside = (root, f"{root.removesuffix('backbone.')}cls_head.")
    others = tuple(other for other in roots if other != root and not root.startswith(other))
    stripped: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}
    for name, tensor in zip(names, tensors.values()):
        if not name.startswith(inside) or (others and name.startswith(others)) or name == _AVERAGED:
            beside[name] = tensor
            continue
        short = name.removeprefix(root)
        for prefix in ("backbone.", inside[1], "cls_head."):
            short = short.removeprefix(prefix)
        if short in stripped:
            raise WeightsError(f"{where} holds {short!r} twice, with and without a prefix: keep one")
        stripped[short] = tensor
    return from_flax(from_hugging_face(stripped, where)), beside


def _renamed(names: list[str]) -> list[str]:
    """The names of a checkpoint of a method's authors as they are here; others as they are."""
    method = next((method for method in METHODS.values() if method.renamed and method.recognises(names)), None)
    for theirs, ours in method.renamed.items() if method else ():
        names = [re.sub(rf"^((?:.+\.)?){re.escape(theirs)}", rf"\g<1>{ours}", name) for name in names]
    return names


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], where: str, among: set[str] | None = None) -> None:
    """Copy ``tensors`` into the model's of the same names; ``among``: the names to fill (default: all of the model's).

    Raises WeightsError naming everything missing, unexpected, of another shape or not finite; nothing is copied then.
    """
    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if among is None or name in among}
    problems = []
    if missing := sorted(own.keys() - tensors.keys()):
        problems.append("missing " + ", ".join(missing))
    if unexpected := sorted(tensors.keys() - own.keys()):
        problems.append("unexpected " + ", ".join(unexpected))
    shapes = [
        f"{name} (file {list(tensors[name].shape)}, model {list(own[name].shape)})"
        for name in sorted(own.keys() & tensors.keys())
        if tensors[name].shape != own[name].shape
    ]
    if shapes:
        problems.append("of another shape " + ", ".join(shapes))
    odd = [name for name in sorted(own.keys() & tensors.keys()) if not tensors[name].isfinite().all()]
    if odd:
        problems.append("not finite " + ", ".join(odd))
    if problems:
        raise WeightsError(f"{where} does not fit the model: {'; '.join(problems)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    if loaded := getattr(model, "weights_loaded", None):  # of a VideoModel
        loaded()
