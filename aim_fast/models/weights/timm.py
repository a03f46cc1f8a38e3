"""Weights of any trunk of timm's into a model that has timm's modules below ``trunk``.

An image file goes through timm's own ``checkpoint_filter_fn``, which renames what the authors named otherwise and
brings positions and bias tables to the model's image size, as timm does. A checkpoint of this project is taken name by
name.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from aim_fast.errors import WeightsError, abridged
from aim_fast.models.weights.adaptation import check_method, fit_adaptation, is_adapted
from aim_fast.models.weights.architecture import adaptation_arguments
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit

OWN = "trunk."
_BLOCK = re.compile(r"trunk\.blocks\.(\d+)\.(.+)")
_TOWERS = ("visual.trunk.", OWN)  # open_clip's name of an image tower of timm's, and ours
# What a file has beside a trunk: classifiers, masks, buffers that are computed, what pre-training read.
_BESIDE = ("head.", "head_dist.", "mask_token", "rope.", "decoder", "lm_head.", "pre_logits.")


def fit_weights(model: Any, twin: nn.Module, architecture: str, file: WeightsFile, source: str) -> Fit:
    """What ``file`` gives ``model``, whose trunk ``twin`` is, of the meta device.

    Raises WeightsError for a file of another trunk, naming what is missing, unexpected or of another shape.
    """
    tensors = dict(file.tensors)
    check_method(model, tensors, source)
    own = {name for name in model.state_dict() if model.is_adaptation(name)}
    lines: list[str] = []
    adaptation = {name: tensor for name, tensor in tensors.items() if model.is_adaptation(name)}
    tower = {
        name: tensor for name, tensor in tensors.items() if name not in adaptation and not name.startswith("text.")
    }
    for prefix in _TOWERS:
        if any(name.startswith(f"{prefix}blocks.") for name in tower):
            tower = {name.removeprefix(prefix): t for name, t in tower.items() if name.startswith(prefix)}
    tower, resized = _filtered(twin, tower, architecture, source)
    lines += resized
    if is_adapted(model, tensors):
        more, left = fit_adaptation(
            model, adaptation, adaptation_arguments(adaptation, _BLOCK), f"{OWN}blocks.", source
        )
        found = {name: tensor for name, tensor in adaptation.items() if name not in left}
        kind = "aim"
    else:
        left, found, kind, more = own, {}, "timm", []
    left |= {name for name in model.state_dict() if name.startswith("ln_post.") and name not in tensors}
    found |= {name: tensor for name, tensor in tensors.items() if name.startswith("ln_post.")}
    return Fit({f"{OWN}{name}": tensor for name, tensor in tower.items()} | found, left, kind, lines + more)


def _filtered(
    twin: nn.Module, tower: dict[str, Tensor], architecture: str, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """A tower in timm's names and the twin's sizes, and lines on what was resized."""
    state = twin.state_dict()
    if not any("blocks." in name or "layers." in name for name in tower):
        first = ", ".join(sorted(tower)[:3]) or "nothing"
        raise WeightsError(f"{source} holds no trunk in timm's names for {architecture}: its first names are {first}")
    change = getattr(sys.modules[type(twin).__module__], "checkpoint_filter_fn", None)
    found: Mapping[str, Tensor] = tower
    if change is not None and not (tower.keys() == state.keys() and _same_shapes(tower, state)):
        logging.getLogger("timm").setLevel(logging.ERROR)  # it speaks of each resized embedding
        try:
            found = change(dict(tower), twin)
        except (KeyError, RuntimeError, ValueError, AttributeError, TypeError, IndexError) as error:
            raise WeightsError(
                f"{source} is no file of {architecture}: timm cannot read its names, such as "
                f"{abridged(sorted(tower), 2)}"
            ) from error
    found = {name: t for name, t in found.items() if name in state or not _is_zero_bias(name, t)}
    taken = {name: found[name] for name in found if name in state}
    odd = sorted(name for name in found if name not in state and not name.startswith(_BESIDE))
    missing = sorted(state.keys() - taken.keys())
    shapes = [name for name in sorted(taken) if taken[name].shape != state[name].shape]
    if missing or odd or shapes:
        said = [f"missing {abridged(missing, 2)}"] if missing else []
        said += [f"unexpected {abridged(odd, 2)}"] if odd else []
        if shapes:
            theirs, ours = (list(tensors[shapes[0]].shape) for tensors in (taken, state))
            more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
            said += [f"of another shape {shapes[0]} (file {theirs}, model {ours}){more}"]
        raise WeightsError(f"{source} is of another trunk than timm's {architecture}: {'; '.join(said)}")
    resized = [
        f"{name} resampled from {list(tower[name].shape)} to {list(taken[name].shape)}, as timm does"
        for name in sorted(taken)
        if name in tower and tower[name].shape != taken[name].shape and tower[name].numel() != taken[name].numel()
    ]
    if len(resized) > 1:
        resized = [*resized[:1], f"{len(resized) - 1} more tensors of positions resampled likewise"]
    return taken, resized


def _is_zero_bias(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a bias of queries, keys or values that adds nothing, as those of most of DINOv3."""
    return name.endswith((".attn.q_bias", ".attn.k_bias", ".attn.v_bias")) and not tensor.any()


def _same_shapes(tower: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return all(tower[name].shape == tensor.shape for name, tensor in state.items())
