"""RandAugment(n, m) as published with AIM: which operations a clip gets, and with what parameters.

n distinct operations of the eighteen in ``OPERATIONS`` are applied in random order, each with the same draw for every
frame. The list and its magnitudes are imgaug's (scale 0 to 30; Cubuk et al., 2020): with q = m/30, rotation ±30q°,
shear ±0.3q rad, translation ±0.33q of the side, posterise to 8 - int(6q) bits, solarise above 256 - int(256q),
enhancement factors 1 ± 0.9q, cutout of side 0.625q, fill 128. At m = 7: ±7°, ±4°, ±7.7 %, 7 bits, 197, 1 ± 0.21, 0.146.

Planned here as numbers, executed by DALI with a few ``Kind``s of operator: five operations are one affine warp,
three are one 5×5 filter, two are one line value·a + b. Every kind follows Pillow's formula to a level or two, except
Equalize, where DALI has OpenCV's formula for the table (further apart on strongly uneven histograms).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np

__all__ = ["FILL", "OPERATIONS", "Kind", "RandAugmentPlan", "operation_parameters", "plan_randaugment"]

FILL = 128

OPERATIONS = (
    "Identity",
    "Autocontrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "FilterBlur",
    "FilterSmooth",
)


class Kind(IntEnum):
    """What DALI does for an operation, and where its parameters are in the 36 numbers of a layer."""

    IDENTITY = 0
    AFFINE = 1  # [0:6] output to input, rows (xx, xy, x0), (yx, yy, y0), pixels
    FILTER = 2  # [6:31] 5×5 kernel, [31] rim that is left alone, pixels
    LINE = 3  # [31] slope a, [32] shift b in levels
    CONTRAST = 4  # [31] factor
    COLOR = 5  # [31] factor
    POSTERIZE = 6  # [31] mask of the bits that stay
    SOLARIZE = 7  # [31] threshold
    AUTOCONTRAST = 8
    EQUALIZE = 9
    CUTOUT = 10  # [32:36] y, x, height, width in pixels
    HUE = 11  # [31] share of a full turn


RandAugmentPlan = tuple[np.ndarray, np.ndarray]  # kinds int32 [n], parameters float32 [n, 36]

_SMOOTH = np.zeros((5, 5), np.float32)
_SMOOTH[1:4, 1:4] = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's SMOOTH
_BLUR = np.ones((5, 5), np.float32) / 16  # Pillow's BLUR: the rim of the 5×5 square
_BLUR[1:4, 1:4] = 0
_UNCHANGED = np.zeros((5, 5), np.float32)
_UNCHANGED[2, 2] = 1


def plan_randaugment(n: int, m: float, img_size: int, draws: Sequence[float]) -> RandAugmentPlan:
    """Plan one clip's operations.

    Args:
        n: operations a clip. m: magnitude on the scale of 0 to 30. img_size: side of the square frames, pixels.
        draws: 18 + 3·n uniform numbers in [0, 1): one to order each operation, then three to each chosen one.
    """
    chosen = sorted(range(len(OPERATIONS)), key=draws.__getitem__)[:n]
    kinds = np.empty(n, np.int32)
    parameters = np.zeros((n, 36), np.float32)
    for layer, operation in enumerate(chosen):
        own = draws[len(OPERATIONS) + 3 * layer : len(OPERATIONS) + 3 * layer + 3]
        kinds[layer] = operation_parameters(OPERATIONS[operation], m / 30, img_size, own, parameters[layer])
    return kinds, parameters


def operation_parameters(name: str, q: float, size: int, draws: Sequence[float], out: np.ndarray) -> Kind:
    sign = 1 if draws[0] < 0.5 else -1
    factor = min(max(1 + sign * 0.9 * q, 0.1), 1.9)
    match name:
        case "Autocontrast":
            return Kind.AUTOCONTRAST
        case "Equalize":
            return Kind.EQUALIZE
        case "Invert":
            out[31:33] = -1, 255
            return Kind.LINE
        case "Rotate":
            angle, centre = sign * math.radians(30 * q), size / 2
            c, s = math.cos(angle), math.sin(angle)
            out[0:6] = c, s, centre - c * centre - s * centre, -s, c, centre + s * centre - c * centre
            return Kind.AFFINE
        case "ShearX":
            out[0:6] = 1, math.tan(sign * 0.3 * q), 0, 0, 1, 0
            return Kind.AFFINE
        case "ShearY":
            out[0:6] = 1, 0, 0, math.tan(sign * 0.3 * q), 1, 0
            return Kind.AFFINE
        case "TranslateX":
            out[0:6] = 1, 0, sign * 0.33 * q * size, 0, 1, 0
            return Kind.AFFINE
        case "TranslateY":
            out[0:6] = 1, 0, 0, 0, 1, sign * 0.33 * q * size
            return Kind.AFFINE
        case "Posterize":
            out[31] = 256 - 2 ** min(max(int(6 * q), 0), 6)
            return Kind.POSTERIZE
        case "Solarize":
            out[31] = min(max(256 - int(256 * q), 0), 256)
            return Kind.SOLARIZE
        case "Color":
            out[31] = factor
            return Kind.COLOR
        case "Contrast":
            out[31] = factor
            return Kind.CONTRAST
        case "Brightness":
            out[31:33] = factor, 0
            return Kind.LINE
        case "Sharpness":
            out[6:31] = ((1 - factor) * _SMOOTH + factor * _UNCHANGED).ravel()
            out[31] = 1
            return Kind.FILTER
        case "FilterBlur":
            out[6:31] = _BLUR.ravel()
            out[31] = 2
            return Kind.FILTER
        case "FilterSmooth":
            out[6:31] = _SMOOTH.ravel()
            out[31] = 1
            return Kind.FILTER
        case "Cutout":
            side = min(0.625 * q, 0.625) * size
            top, left = draws[1] * size - side / 2, draws[2] * size - side / 2
            y0, x0 = max(round(top), 0), max(round(left), 0)
            y1, x1 = min(round(top + side), size), min(round(left + side), size)
            out[32:36] = y0, x0, y1 - y0, x1 - x0
            return Kind.CUTOUT
    return Kind.IDENTITY
