"""What is asked of a network beside a frozen trunk: the trunk's tokens in, one feature of a clip out.

The trunk's blocks run as they are. While nothing of them trains autograd records nothing there, so that backward ends
in the network; where the trunk trains too, or gradients of pixels are asked for, it goes on through it.

All that the network reads can be stored, a row of numbers a clip: what it reads of each block from the lowest on, and
the pixels where it reads them, whose 256 levels are exact in any dtype of 16 bits. No block then runs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aim_kernels.choices import BlockBackend, Memory
from aim_kernels.memory import run_again

Read = tuple[Tensor, ...]  # what is read of a block: its output first


class SideNetwork(nn.Module):
    """A network beside the trunk; ``backend`` and ``memory`` as a block's."""

    feature_dim: int  # of what it gives
    joint: bool = False  # whether that is in the space of class names
    reads_pixels: bool = True

    def __init__(self, backend: BlockBackend, memory: Memory) -> None:
        super().__init__()
        self.backend, self.memory = backend, memory

    @abstractmethod
    def forward(self, model: Any, tokens: Tensor, clips: Tensor, stored: Sequence[Read] = ()) -> Tensor:
        """The feature of each clip, normalised, ``[B, 1, feature_dim]``.

        ``tokens`` [B, T, N, D] are the input of ``model.row[model.lowest]``; ``clips`` what ``model`` was given. With
        ``stored``, what :meth:`read` gave of each block from there on, no block runs and ``tokens`` are not looked at.
        """

    def read(self, block: Any, tokens: Tensor) -> Read:
        """What the network reads of a block on ``tokens`` [B, T, N, D]."""
        return (block(tokens),)

    def read_shapes(self, model: Any) -> list[list[int]]:
        """Of a clip, the shapes of what :meth:`read` gives."""
        return [[model.trunk_frames, model.num_tokens, model.embed_dim]]

    def store(self, model: Any, tokens: Tensor, clips: Tensor) -> Tensor:
        """All that the network reads of each clip in one row, ``[B, E]``; the arguments are those of :meth:`forward`.

        Raises ValueError where it reads pixels and ``clips`` are not uint8.
        """
        if self.reads_pixels and clips.dtype != torch.uint8:
            raise ValueError(f"stored are pixels of uint8, not {clips.dtype}")
        parts: list[Tensor] = [clips] if self.reads_pixels else []
        for block in model.row[model.lowest :]:
            found = self.read(block, tokens)
            tokens, parts = found[0], [*parts, *found]
        return torch.cat([part.flatten(1) for part in parts], 1)

    def from_stored(self, model: Any, rows: Tensor) -> Tensor:
        """:meth:`forward` on what :meth:`store` gave, perhaps in another dtype."""
        shapes, count = self.read_shapes(model), model.depth - model.lowest
        pixels = [model.num_frames, model.img_size, model.img_size, 3]
        every = ([pixels] if self.reads_pixels else []) + shapes * count
        parts = [part.unflatten(1, shape) for part, shape in zip(rows.split([*map(math.prod, every)], 1), every)]
        clips = parts.pop(0).to(torch.uint8) if self.reads_pixels else rows
        dtype, each = model.projection.weight.dtype, len(shapes)
        layers = [part.to(dtype) for part in parts]
        stored = [tuple(layers[first : first + each]) for first in range(0, len(layers), each)]
        return self(model, stored[-1][0], clips, stored)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialises it as its authors do."""

    def again(self, read: Callable[..., Any], kept: Tensor, *others: Any) -> Any:
        """``read(kept, *others)``, run again in backward, for which its arguments alone are kept; not by a compiler."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return read(kept, *others)
        return run_again(read, kept, *others, dtype=kept.dtype)
