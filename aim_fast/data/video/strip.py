"""Frames side by side in one small JPEG, as text that a page can hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["JPEG", "strip"]

JPEG = "data:image/jpeg;base64,"
_HEIGHT = 96  # pixels
_WIDEST = 3  # times as wide as high
_QUALITY = 72  # of JPEG: 8 frames take some 20 kB


def strip(frames: Sequence[np.ndarray]) -> str:
    """``data:image/jpeg;base64,…`` of uint8 frames [H, W, 3], each brought to the same height."""
    small = []
    for frame in frames:
        width = min(max(round(_HEIGHT * frame.shape[1] / frame.shape[0]), 1), _WIDEST * _HEIGHT)
        small.append(np.asarray(Image.fromarray(frame).resize((width, _HEIGHT), Image.Resampling.BILINEAR)))
    file = io.BytesIO()
    Image.fromarray(np.concatenate(small, axis=1)).save(file, "JPEG", quality=_QUALITY, optimize=True)
    return JPEG + base64.b64encode(file.getvalue()).decode()
