"""Box and resize of decoded frames on the CPU, in PyTorch's vectorised uint8 kernel.

Linear with antialiasing (a triangle filter as wide as the shrinking): what the published pipeline's bilinear resize
does where it enlarges, without its aliasing where it shrinks. The box is rounded to whole pixels and cut out first, as
published, so nothing outside it is seen.
"""

from __future__ import annotations

import numpy as np
import torch

from aim_fast.data.plan.clip_plan import ClipPlan

__all__ = ["box_slices", "resize_box", "resize_whole"]


def resize_box(frames: np.ndarray | torch.Tensor, plan: ClipPlan, img_size: int) -> np.ndarray:
    """uint8 [U, S, S, 3]: the plan's box of frames uint8 [U, H, W, 3], mirrored where the plan says so."""
    frames = torch.as_tensor(frames)
    rows, columns = box_slices(plan, *frames.shape[1:3])
    return resize_whole(frames[:, rows, columns], plan.flip, img_size)


def box_slices(plan: ClipPlan, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the plan's box, of at least one pixel each."""
    y0, x0, y1, x1 = (round(part * side) for part, side in zip(plan.box, (height, width, height, width)))
    return slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1))


def resize_whole(frames: np.ndarray | torch.Tensor, flip: bool, img_size: int) -> np.ndarray:
    """uint8 [U, S, S, 3] of frames uint8 [U, H, W, 3], mirrored with ``flip``."""
    pixels = torch.as_tensor(frames).permute(0, 3, 1, 2)
    out = torch.nn.functional.interpolate(pixels, (img_size, img_size), mode="bilinear", antialias=True)
    if flip:
        out = out.flip(-1)
    return out.permute(0, 2, 3, 1).contiguous().numpy()
