"""Embeddings of another size: positions on a grid of patches, and frames in time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def interpolate_positions(embedding: Tensor, num_tokens: int) -> Tensor:
    """Positional embedding ``[1 + g², D]`` for another square grid, ``[num_tokens, D]`` in fp32.

    The class token's row is kept; the grid is resampled bicubically with antialiasing, as open_clip and timm do.
    """
    old, new = math.isqrt(len(embedding) - 1), math.isqrt(num_tokens - 1)
    cls, grid = embedding[:1].float(), embedding[1:].float()
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([cls, grid.flatten(2)[0].T])


def interpolate_frames(embedding: Tensor, num_frames: int) -> Tensor:
    """Temporal embedding ``[1, T, D]`` for another number of frames, linearly, ``[1, num_frames, D]`` in fp32.

    Frames stand for the middles of equal parts of the clip, so the ends are not aligned.
    """
    resampled = F.interpolate(embedding.float().transpose(1, 2), size=num_frames, mode="linear", align_corners=False)
    return resampled.transpose(1, 2)
