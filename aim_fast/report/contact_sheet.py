"""Contact sheets: frames of a clip that the model saw, side by side in one picture, as a data address for a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aim_fast.data import Sampling, load_views
from aim_fast.data.video.strip import strip
from aim_fast.errors import AimFastError

__all__ = ["contact_sheet"]

_FRAMES = 8


def contact_sheet(path: str, sampling: Sampling, img_size: int) -> str:
    """``data:image/jpeg;base64,…`` of at most 8 frames of the view in the middle; "" where the file has none."""
    try:
        views = load_views(Path(path), sampling, img_size, allow_short=True)
    except AimFastError:
        return ""
    frames = views[sampling.clips // 2 * sampling.crops + sampling.crops - 1].numpy()  # the last crop is the middle
    return strip(frames[np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().astype(int)])
