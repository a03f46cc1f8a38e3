"""Embeddings of another size: positions on a grid of patches, and frames in time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def interpolate_positions(embedding: Tensor, num_tokens: int, num_prefix_tokens: int = 1) -> Tensor:
    """Positional embedding ``[P + g², D]`` for another square grid, ``[num_tokens, D]`` in fp32.

    The rows of the P prefix tokens (the class token) are kept; the grid is resampled bicubically with antialiasing, as
    open_clip and timm do.
    """
    old, new = (math.isqrt(length - num_prefix_tokens) for length in (len(embedding), num_tokens))
    prefix, grid = embedding[:num_prefix_tokens].float(), embedding[num_prefix_tokens:].float()
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([prefix, grid.flatten(2)[0].T])


def interpolate_frames(embedding: Tensor, num_frames: int) -> Tensor:
    """Temporal embedding ``[1, T, D]`` for another number of frames, linearly, ``[1, num_frames, D]`` in fp32.

    Frames stand for the middles of equal parts of the clip, so the ends are not aligned.
    """
    resampled = F.interpolate(embedding.float().transpose(1, 2), size=num_frames, mode="linear", align_corners=False)
    return resampled.transpose(1, 2)


def interpolate_bias_table(table: Tensor, window: int) -> Tensor:
    """Swin's table of relative position biases ``[(2v − 1)², h]`` for windows of another size, ``[(2w − 1)², h]``.

    Bicubic over the offsets in rows and columns, as Swin and Video Swin do; fp32.
    """
    old, new = math.isqrt(len(table)), 2 * window - 1
    grid = table.float().T.reshape(1, -1, old, old)
    return F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False).flatten(2)[0].T


def interpolate_offsets(table: Tensor, rows: int) -> Tensor:
    """A table of biases by offset in time ``[2T − 1, h]`` for another number of steps, ``[rows, h]`` in fp32.

    Linear, the largest offsets staying the largest: they stand for the ends of the clip.
    """
    return F.interpolate(table.float().T[None], size=rows, mode="linear", align_corners=True)[0].T
