"""Adapted weights interpolated with frozen ones, which wins back generality that adaptation has cost.

    θ(α) = (1 − α)·θ_frozen + α·θ_trained

θ_frozen is the model before training, whose features are those of the frozen image Transformer: in it
``temporal_embedding`` and every adapter's ``D_fc2`` are 0, ``ln_post`` and a tuned trunk are CLIP's. With ``D_fc2``
at 0 an adapter adds nothing whatever its ``D_fc1`` is, so the frozen model's ``D_fc1`` may be taken to be the trained
one: it stays as it is, and the output of every adapter is scaled by α. At α = 0 the model is frozen CLIP on the mean of
frames, at α = 1 the trained one.

Sources: Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), CVPR 2022; for video, Huang et al., FROSTER,
ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from aim_fast.errors import UsageError
from aim_fast.models.video_model import VideoModel


def check_wise_ft(model: VideoModel, share: float, where: Path) -> None:
    """Raises UsageError for a share that is none, and for a model without frozen weights to go back to."""
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"--wise-ft {share:g} must be from 0 (frozen weights) to 1 (trained weights)")
    if model.config.get("head") != "text":
        raise UsageError(
            f"{where}: --wise-ft needs a text head (train --head text): what else was learned has no frozen value"
        )


def interpolate_weights(frozen: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """θ(``share``) of the trained tensors, see above; ``frozen``: the model's before training, under the same names."""
    return {
        name: tensor if ".D_fc1." in name else torch.lerp(frozen[name].detach().to(tensor), tensor, share)
        for name, tensor in trained.items()
    }
