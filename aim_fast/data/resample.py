"""A view of decoded frames without DALI: box, antialiased linear resize, gather, in PyTorch on the CPU.

The same filter as the graph's: along each side a triangle of radius max(1, shrinking) around the sample's place in the
box, reaching past the box where the frame goes on, clamped at the frame's edge. Both sides are small dense matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from aim_fast.data.clip_input import ClipInput
from aim_fast.data.plan import ClipPlan

__all__ = ["EvaluationGraph", "view_of"]


def view_of(pixels: np.ndarray, plan: ClipPlan, img_size: int) -> torch.Tensor:
    """uint8 [T, S, S, 3]: the planned view of frames uint8 [U, H, W, 3]; of a plan without augmentation."""
    frames = torch.from_numpy(np.ascontiguousarray(pixels)).float()
    _, height, width, _ = frames.shape
    y0, x0, y1, x1 = plan.box
    rows = _filter(height, y0 * height, y1 * height, img_size)
    columns = _filter(width, x0 * width, x1 * width, img_size)
    out = torch.einsum("yh,uhwc->uywc", rows, frames)
    out = torch.einsum("xw,uywc->uyxc", columns, out)
    return out.round_().clamp_(0, 255).to(torch.uint8)[torch.from_numpy(plan.order).long()]


class EvaluationGraph:
    """Stands in for the DALI graph where there is none: the same batches of plain evaluation views."""

    def __init__(self, img_size: int, device: torch.device) -> None:
        self.img_size, self.device = img_size, device

    def run(self, batches: Iterable[Sequence[ClipInput]]) -> Iterator[torch.Tensor]:
        """For each batch of clips with pixels its frames, uint8 [B, T, S, S, 3]."""
        for batch in batches:
            views = [view_of(clip.pixels, clip.plan, self.img_size) for clip in batch if clip.pixels is not None]
            yield torch.stack(views).to(self.device)


def _filter(size: int, start: float, end: float, samples: int) -> torch.Tensor:
    """float32 [samples, size]: weights of the pixels of one side for each sample of [start, end)."""
    step = (end - start) / samples
    radius = max(1.0, step)
    centres = start + (np.arange(samples) + 0.5) * step - 0.5
    taps = np.floor(centres - radius)[:, None] + np.arange(int(2 * radius) + 3)
    weights = np.maximum(0, 1 - np.abs(taps - centres[:, None]) / radius)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((samples, size))
    np.add.at(matrix, (np.arange(samples)[:, None], taps.clip(0, size - 1).astype(np.int64)), weights)
    return torch.from_numpy(matrix.astype(np.float32))
