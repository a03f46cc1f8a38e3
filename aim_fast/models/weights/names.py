"""What the names of a state dict tell: the marks of wrappers, and below which prefix an image trunk lies.

module.model.visual.conv1.weight   ->  model.visual.conv1.weight, a trunk below "model."
encoder.module.blocks.0.…          ->  encoder.blocks.0.…, a trunk below "encoder."
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from aim_fast.errors import WeightsError

# DataParallel and DeepSpeed, torch.compile, FSDP, activation checkpointing, Lightning: wherever they wrapped a module.
_WRAPPERS = re.compile(
    r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)[.:]"
)
# The one tensor that every trunk has, in the names of CLIP, of timm and of Hugging Face, below a prefix.
_TRUNK = re.compile(
    r"((?:[^.]+\.)*?)(?:"
    r"(?:visual\.)?(?:(?<!embeddings\.)class_embedding|(?:trunk\.)?patch_embed\.proj\.weight)|"
    r"(?:vision_model\.)?embeddings\.(?:patch_embed|patch_embedding|patch_embeddings(?:\.projection)?)\.weight)"
)
# Which of several is meant where nobody says so: what was trained before its average, a teacher before its student.
_USUAL = (
    *("state_dict", "model", "module", "model_state_dict"),
    *("state_dict_ema", "model_ema", "ema", "ema_state_dict", "model_ema_state_dict"),
    *("teacher", "encoder", "target_encoder", "student"),
)
PLAIN = ("", *_USUAL[:4])  # of these nothing need be said


def unwrap(name: str) -> str:
    """A name without the marks of the wrappers around its modules."""
    return _WRAPPERS.sub("", name)


def trunk_roots(names: Iterable[str]) -> list[str]:
    """The prefixes below which image trunks lie, each "" or ending in a dot, of names without wrappers."""
    return list(dict.fromkeys(match[1] for match in map(_TRUNK.fullmatch, names) if match))


def choose(places: Collection[str], where: str) -> str:
    """Which of several entries or prefixes is meant: the only one, or the usual one.

    Raises WeightsError, naming them all, where neither is.
    """
    known = sorted((p for p in places if _last(p) in _USUAL), key=lambda place: _USUAL.index(_last(place)))
    if known or "" in places:
        return known[0] if known else ""
    if len(places) == 1:
        return next(iter(places))
    several = ", ".join(sorted(place.rstrip(".") for place in places))
    raise WeightsError(f"{where} holds several state dicts ({several}): choose one with --weights-key")


def _last(place: str) -> str:
    return place.removesuffix("backbone.").rstrip(".").rpartition(".")[2]
