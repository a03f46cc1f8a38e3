"""Accuracies that torchvision publishes with its weights, read from their metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aim_fast.models.composition import arguments_of
from aim_fast.models.registry import find_entry


def published_by_library(name: str, dataset: str, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a library says of a model's best weights on ``dataset``: ``top1`` percent, ``views``, ``source``.

    Of ``create_model(name, **arguments)`` in the structure of the name. None where the library says nothing: for
    another structure or data set, for names that it has not, and for transformers, whose weights a hub describes.
    """
    library, _, builder = name.partition(":")
    if library != "torchvision" or dataset != "kinetics400":
        return None
    own = arguments_of(find_entry(name))
    if any(arguments[key] != own[key] for key in arguments if key in own and key not in ("mean", "std", "drop_path")):
        return None
    from torchvision.models import get_model_weights, list_models

    if builder not in list_models():
        return None
    found = {weights: weights.meta["_metrics"]["Kinetics-400"]["acc@1"] for weights in get_model_weights(builder)}
    best = max(found, key=found.__getitem__)
    clips = re.search(r"clips_per_video=(\d+)", best.meta.get("_docs", ""))
    views = {"views": f"{clips[1]}x1"} if clips else {}
    return {"top1": found[best], **views, "source": f"torchvision, metadata of {best}"}
