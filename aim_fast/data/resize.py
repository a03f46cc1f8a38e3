"""Box and resize of decoded frames on the CPU, in PyTorch's vectorised uint8 kernel.

Linear with antialiasing (a triangle filter as wide as the shrinking): what the published pipeline's bilinear resize
does where it enlarges, without its aliasing where it shrinks. The box is rounded to whole pixels and cut out first, as
published, so nothing outside it is seen.
"""

from __future__ import annotations

import numpy as np
import torch

from aim_fast.data.plan import ClipPlan

__all__ = ["resize_box"]


def resize_box(frames: np.ndarray | torch.Tensor, plan: ClipPlan, img_size: int) -> np.ndarray:
    """uint8 [U, S, S, 3]: the plan's box of frames uint8 [U, H, W, 3], mirrored where the plan says so."""
    frames = torch.as_tensor(frames)
    _, height, width, _ = frames.shape
    y0, x0, y1, x1 = (round(part * side) for part, side in zip(plan.box, (height, width, height, width)))
    box = frames[:, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].permute(0, 3, 1, 2)
    out = torch.nn.functional.interpolate(box, (img_size, img_size), mode="bilinear", antialias=True)
    if plan.flip:
        out = out.flip(-1)
    return out.permute(0, 2, 3, 1).contiguous().numpy()
