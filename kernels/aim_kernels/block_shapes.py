"""Block shapes of every Triton kernel: one committed table, so that no user's first step is spent on autotuning.

``block_shape(kernel, size, architecture, itemsize)`` gives the launch parameters of ``kernel`` for a size class (the
head dimension for attention, the length of a group for attention within groups, the row width for norms, activations
and adapters). Entries were chosen so that no kernel spills registers to speak of and every one fits the shared memory
of sm_80, 86, 89, 90 and 100 (tests/kernels/test_ahead_of_time.py compiles them); `python -m bench kernels` on a GPU is
what should replace them by measured ones.

The attentions have smaller tiles for float32. Its products run as three tf32 products of the operands' high and low
parts, which is single precision on tensor cores; without them whole operands lie in registers and spill kilobytes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BlockShape(NamedTuple):
    """Rows and columns (or inner depth) of a program's tile, and how it is launched."""

    rows: int
    columns: int
    warps: int
    stages: int


_TABLE: dict[str, list[tuple[int, BlockShape]]] = {
    # (largest size served, shape), in rising order of size
    "temporal_attention_forward": [(64, BlockShape(64, 64, 4, 1)), (128, BlockShape(64, 128, 8, 1))],
    "temporal_attention_backward": [(64, BlockShape(64, 64, 4, 1)), (128, BlockShape(64, 128, 8, 1))],
    "spatial_attention_forward": [(64, BlockShape(128, 64, 4, 2)), (128, BlockShape(64, 64, 4, 2))],
    "spatial_attention_backward_queries": [(64, BlockShape(64, 64, 4, 2)), (128, BlockShape(64, 32, 4, 2))],
    "spatial_attention_backward_keys": [(64, BlockShape(32, 64, 4, 2)), (128, BlockShape(32, 64, 4, 2))],
    "temporal_attention_forward_float32": [(64, BlockShape(32, 64, 4, 1)), (128, BlockShape(16, 128, 4, 1))],
    "temporal_attention_backward_float32": [(64, BlockShape(32, 64, 8, 1)), (128, BlockShape(16, 128, 8, 1))],
    "spatial_attention_forward_float32": [(64, BlockShape(32, 32, 4, 1)), (128, BlockShape(16, 32, 4, 1))],
    "spatial_attention_backward_queries_float32": [(64, BlockShape(32, 32, 4, 1)), (128, BlockShape(16, 32, 4, 1))],
    "spatial_attention_backward_keys_float32": [(64, BlockShape(32, 32, 8, 1)), (128, BlockShape(32, 16, 8, 1))],
    # by the tokens of a group, padded to a power of two
    "group_attention_forward": [
        (16, BlockShape(16, 16, 1, 1)),
        (32, BlockShape(32, 32, 2, 1)),
        (64, BlockShape(64, 64, 4, 1)),
    ],
    "group_attention_backward": [
        (16, BlockShape(16, 16, 1, 1)),
        (32, BlockShape(32, 32, 2, 1)),
        (64, BlockShape(64, 64, 8, 1)),
    ],
    "group_attention_forward_float32": [
        (16, BlockShape(16, 16, 2, 1)),
        (32, BlockShape(32, 32, 4, 1)),
        (64, BlockShape(64, 64, 8, 1)),
    ],
    "group_attention_backward_float32": [
        (16, BlockShape(16, 16, 2, 1)),
        (32, BlockShape(32, 32, 8, 1)),
        (64, BlockShape(64, 64, 8, 1)),
    ],
    "layer_norm": [
        (1024, BlockShape(4, 1024, 4, 1)),
        (2048, BlockShape(2, 2048, 4, 1)),
        (8192, BlockShape(1, 8192, 8, 1)),
    ],
    # sectors of 128 bytes and more of a row; narrow sums have more rows a program
    "column_sum": [(256, BlockShape(64, 64, 4, 1)), (1 << 31, BlockShape(32, 128, 4, 1))],
    "rotation": [(64, BlockShape(32, 64, 4, 1)), (128, BlockShape(16, 128, 4, 1)), (256, BlockShape(8, 256, 4, 1))],
    # by the hidden size, padded to a power of two; columns are the step over the width
    "adapter_forward": [
        (64, BlockShape(128, 64, 8, 3)),
        (128, BlockShape(128, 64, 8, 3)),
        (256, BlockShape(64, 32, 8, 3)),
    ],
    "adapter_backward": [
        (64, BlockShape(64, 64, 4, 3)),
        (128, BlockShape(64, 64, 8, 2)),
        (256, BlockShape(32, 64, 8, 2)),
    ],
    # Narrow tiles: idle columns cost as much as those that are there, and so does a tile of both activations; eight
    # elements a thread, as more of them lie apart in u and in its slopes, which are then computed twice. Instructions
    # of a warp a row of B/16's 3,072 + 192 columns on sm_90, wide_slope forward and backward: this one 2,708 and 1,744;
    # (32, 64, 8, 1) 2,696 and 1,731; (8, 128, 4, 1) 2,811 and 1,840; (16, 64, 2, 1) 3,744 and 1,720;
    # (16, 256, 8, 1) 3,918 and 1,868; (4, 1024, 8, 1), where the blocks of a row are not known, 5,740 and 3,376.
    "wide_activation": [(1 << 31, BlockShape(16, 64, 4, 1))],
}


def block_shape(kernel: str, size: int, architecture: int, itemsize: int = 2) -> BlockShape:
    """The launch parameters of ``kernel`` for ``size`` and elements of ``itemsize`` bytes.

    Raises ValueError beyond the largest size the table serves.
    """
    entries = _TABLE.get(f"{kernel}_float32" if itemsize == 4 else kernel) or _TABLE[kernel]
    for largest, shape in entries:
        if size <= largest:
            return shape
    raise ValueError(f"{kernel}: size {size} is beyond {entries[-1][0]}, the largest its kernel serves")


def dot_precision(x: Tensor) -> str:
    """``input_precision`` of the products of ``x``: single precision for float32; nothing to say for halves."""
    return "tf32x3" if x.dtype == torch.float32 else "tf32"
