"""What a pipeline takes and how it fails, apart from any one pipeline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aim_fast.data.plan.clip_plan import ClipPlan

__all__ = ["ClipInput", "PipelineError"]


class PipelineError(Exception):
    """A batch that a pipeline could not produce; the pipeline is of no use after it."""


@dataclass(slots=True)
class ClipInput:
    """One clip for a pipeline: what to do, and the file for DALI to decode, or its bytes uint8 [n] where it is part of
    a shard, or from PyAV frames uint8 [U, S, S, 3]. ``size`` is the (height, width) of the file's frames."""

    plan: ClipPlan
    path: str
    pixels: np.ndarray | None = None
    encoded: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)

    @property
    def coded_size(self) -> tuple[int, int]:
        """The size in whole blocks of 16 pixels, which a decoder on a GPU is made for."""
        return -(-self.size[0] // 16), -(-self.size[1] // 16)
