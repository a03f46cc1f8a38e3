"""Colour jitter and random grey: torchvision's ``ColorJitter`` and ``RandomGrayscale``, as layers of the kinds of
RandAugment.

Brightness, contrast and saturation are factors drawn uniformly from [max(0, 1 - a), 1 + a], hue a share of a full turn
from [-a, a]; the four are applied in an order that is drawn. One draw holds for all frames of a clip. Grey is
saturation 0 of all of it, drawn apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aim_fast.data.plan.randaugment import Kind, RandAugmentPlan

__all__ = ["JITTERED", "plan_grayscale", "plan_jitter"]

JITTERED = (Kind.LINE, Kind.CONTRAST, Kind.COLOR, Kind.HUE)  # brightness, contrast, saturation, hue


def plan_jitter(strengths: Sequence[float], probability: float, draws: Sequence[float]) -> RandAugmentPlan:
    """Four layers: kinds int32 [4] and parameters float32 [4, 36].

    Args:
        strengths: a of brightness, contrast, saturation and hue; 0 for none.
        probability: of jittering a clip at all.
        draws: nine uniform numbers: whether, four that order the changes, and four that say how much.
    """
    kinds, parameters = np.zeros(4, np.int32), np.zeros((4, 36), np.float32)
    if draws[0] >= probability:
        return kinds, parameters
    for layer, number in enumerate(sorted(range(4), key=draws[1:5].__getitem__)):
        strength, kind = strengths[number], JITTERED[number]
        low, high = (-strength, strength) if kind is Kind.HUE else (max(0.0, 1 - strength), 1 + strength)
        kinds[layer] = kind if strength else Kind.IDENTITY
        parameters[layer, 31] = low + draws[5 + number] * (high - low)
    return kinds, parameters


def plan_grayscale(probability: float, draw: float) -> RandAugmentPlan:
    """One layer, which takes the colour out of a clip with ``probability``."""
    kind = Kind.COLOR if draw < probability else Kind.IDENTITY
    return np.array([kind], np.int32), np.zeros((1, 36), np.float32)
