"""The patches of a clip over space and time, each as one vector of the model: [B, T', N, D], N patches a step of time.

A tubelet is t frames × p × p pixels, and tubelets do not overlap: the convolution is one product over flattened
pixels, faster than itself. For uint8 the normalisation is folded into it, W·((x − mean)/std) + b = (W/std)·(x − 128)
+ Σ (W/std)·(128 − mean) + b. Mean and std stay plain numbers, exact in any dtype; the bias is that of the rounded
weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# The middle of uint8: pixels minus this are exact in bf16, and small enough that a rounded weight does little harm.
_MIDDLE = 128.0


def embed_tubelets(x: Tensor, weight: Tensor, bias: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Clips, uint8 ``[B, T, H, W, 3]`` or normalised ``[B, 3, T, H, W]``, by a kernel ``[D, 3, t, p, p]``."""
    steps, side = weight.shape[2], weight.shape[-1]
    if x.dtype == torch.uint8:
        b, t, grid = x.shape[0], x.shape[1] // steps, x.shape[2] // side
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        scaled = torch.stack([wide[:, c] / std[c] for c in range(3)], dim=-1).to(weight.dtype)  # [D, t, p, p, 3]
        for c, sums in enumerate(scaled.to(wide.dtype).sum((1, 2, 3)).unbind(-1)):
            bias = bias + (sums * (_MIDDLE - mean[c])).to(bias.dtype)
        patches = x.reshape(b, t, steps, grid, side, grid, side, 3).permute(0, 1, 3, 5, 2, 4, 6, 7)
        patches, weight = patches.to(weight.dtype) - _MIDDLE, scaled
    else:
        b, t, grid = x.shape[0], x.shape[2] // steps, x.shape[3] // side
        patches = x.to(weight.dtype).reshape(b, 3, t, steps, grid, side, grid, side)
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7)
    patches = patches.reshape(b, t, grid * grid, 3 * steps * side * side)
    return F.linear(patches, weight.flatten(1), bias)
