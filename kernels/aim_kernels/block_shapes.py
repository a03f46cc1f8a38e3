"""Block shapes of every Triton kernel: what was measured here, else one committed table; and what may be measured.

:func:`block_shape` gives the launch parameters of a kernel for a size class (the head dimension for attention, the
length of a group for attention within groups, the row width for norms, activations and adapters). Entries of the table
were chosen so that no kernel spills registers to speak of and every one fits the shared memory of sm_80, 86, 89, 90 and
100 (tests/kernels/test_ahead_of_time.py compiles them). ``CHOSEN`` goes before the table: what a tuning found fastest
on the card at hand, of :func:`candidates`. Nothing is measured here, see ``aim_fast.tuning``.

The attentions have smaller tiles for float32. Its products run as three tf32 products of the operands' high and low
parts, which is single precision on tensor cores; without them whole operands lie in registers and spill kilobytes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor


class BlockShape(NamedTuple):
    """Rows and columns (or inner depth) of a program's tile, and how it is launched."""

    rows: int
    columns: int
    warps: int
    stages: int


LIBRARY = BlockShape(0, 0, 0, 0)  # no tile of ours: a library's product, and a pass after it
APART = LIBRARY  # or two kernels for one


def _shapes(*shapes: tuple[int, int, int, int]) -> list[BlockShape]:
    return [BlockShape(*shape) for shape in shapes]


_SHORT = [(64, BlockShape(32, 64, 4, 2)), (128, BlockShape(32, 128, 8, 2))]  # sequences, on any card
_TABLE: dict[str, list[tuple[int, BlockShape]]] = {
    # (largest size served, shape), in rising order of size
    "temporal_attention_forward": [(64, BlockShape(64, 64, 4, 1)), (128, BlockShape(64, 128, 8, 1))],
    "temporal_attention_backward": [(64, BlockShape(64, 64, 4, 1)), (128, BlockShape(64, 128, 8, 1))],
    "spatial_attention_forward": [(64, BlockShape(64, 32, 4, 3)), (128, BlockShape(64, 64, 4, 2))],
    "spatial_attention_backward_queries": [(64, BlockShape(64, 32, 4, 3)), (128, BlockShape(64, 32, 4, 2))],
    "spatial_attention_backward_keys": [(64, BlockShape(32, 64, 4, 3)), (128, BlockShape(32, 64, 4, 2))],
    "temporal_attention_forward_float32": [(64, BlockShape(32, 64, 4, 1)), (128, BlockShape(16, 128, 4, 1))],
    "temporal_attention_backward_float32": [(64, BlockShape(32, 64, 8, 1)), (128, BlockShape(16, 128, 8, 1))],
    "spatial_attention_forward_float32": [(64, BlockShape(32, 32, 4, 1)), (128, BlockShape(16, 32, 4, 1))],
    "spatial_attention_backward_queries_float32": [(64, BlockShape(32, 32, 4, 1)), (128, BlockShape(16, 32, 4, 1))],
    "spatial_attention_backward_keys_float32": [(64, BlockShape(32, 32, 8, 1)), (128, BlockShape(32, 16, 8, 1))],
    # in one kernel, by the tokens, padded to a power of two. Instructions of warps a head at 197 tokens, and of the two
    # kernels: on sm_90 37,400 and 74,000, with 16 rows 50,600; on sm_80, where 32 rows spill, 57,500 and 89,000
    "spatial_attention_backward": [*_SHORT, (1 << 31, APART)],
    "spatial_attention_backward_sm80": [*_SHORT, (256, BlockShape(16, 256, 8, 2)), (1 << 31, APART)],
    "spatial_attention_backward_sm90": [*_SHORT, (256, BlockShape(32, 256, 8, 2)), (1 << 31, APART)],
    "spatial_attention_backward_float32": [(1 << 31, APART)],
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
    # of a norm and the branch before it, whose rows hold more in registers: a branch, or four operands and a sum
    "layer_norm_branch": [
        (1024, BlockShape(4, 1024, 8, 1)),
        (2048, BlockShape(2, 2048, 8, 1)),
        (8192, BlockShape(1, 8192, 16, 1)),
    ],
    # sectors of 128 bytes and more of a row; narrow sums have more rows a program
    "column_sum": [(256, BlockShape(64, 64, 8, 1)), (1 << 31, BlockShape(64, 64, 4, 1))],
    "rotation": [(64, BlockShape(32, 64, 4, 1)), (128, BlockShape(16, 128, 4, 1)), (256, BlockShape(8, 256, 4, 1))],
    # by the hidden size, padded to a power of two; columns are the step over the width
    "adapter_forward": [
        (64, BlockShape(128, 64, 8, 3)),
        (128, BlockShape(128, 64, 8, 3)),
        (256, BlockShape(64, 32, 8, 3)),
    ],
    "adapter_forward_sm100": [  # at 128 × 64, 32 bytes a thread are spilled where D is 1024
        (64, BlockShape(128, 64, 8, 3)),
        (128, BlockShape(128, 32, 8, 3)),
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
    "wide_product": [(1 << 31, LIBRARY)],
}

# What a tuning measures beside the table's entry, on all architectures or on those of :func:`_entries`; each compiles
# for those of sm_80, 90 and 100 without spilling to speak of.
_CANDIDATES: dict[str, list[tuple[int, list[BlockShape]]]] = {
    "temporal_attention_forward": [
        (64, _shapes((32, 64, 2, 1), (32, 64, 4, 1), (64, 64, 8, 1), (128, 64, 8, 1))),
        (128, _shapes((32, 128, 4, 1), (64, 128, 4, 1))),
    ],
    "temporal_attention_backward": [
        (64, _shapes((32, 64, 2, 1), (32, 64, 4, 1), (64, 64, 8, 1), (128, 64, 8, 1))),
        (128, _shapes((32, 128, 4, 1), (32, 128, 8, 1))),
    ],
    "spatial_attention_forward": [
        (
            64,
            _shapes((128, 64, 4, 2), (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 3), (64, 64, 4, 2))
            + _shapes((64, 64, 4, 3), (128, 128, 8, 2), (128, 32, 4, 3)),
        ),
        (128, _shapes((128, 64, 8, 2), (64, 32, 4, 2), (128, 32, 8, 3), (64, 64, 8, 2))),
    ],
    "spatial_attention_backward_queries": [
        (
            64,
            _shapes((64, 64, 4, 2), (64, 32, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (32, 64, 4, 2))
            + _shapes((128, 32, 8, 2)),
        ),
        (128, _shapes((64, 64, 8, 2), (128, 32, 8, 2), (32, 32, 4, 2))),
    ],
    "spatial_attention_backward_keys": [
        (64, _shapes((32, 64, 4, 2), (32, 128, 8, 2), (32, 64, 8, 2), (16, 64, 4, 2))),
        (128, _shapes((32, 64, 8, 2), (64, 64, 8, 2), (16, 64, 4, 2), (32, 128, 8, 2))),
    ],
    "spatial_attention_backward_keys_sm90": [(64, _shapes((64, 64, 4, 2), (64, 64, 8, 2), (64, 128, 8, 2)))],
    "spatial_attention_backward": [
        (64, [APART, *_shapes((64, 64, 4, 2))]),
        (128, [APART, *_shapes((64, 128, 8, 2))]),
    ],
    "spatial_attention_backward_sm80": [(128, []), (256, [APART, *_shapes((16, 256, 8, 1))])],
    "spatial_attention_backward_sm90": [(128, []), (256, [APART, *_shapes((16, 256, 8, 2), (16, 256, 8, 3))])],
    "temporal_attention_forward_float32": [
        (64, _shapes((32, 64, 8, 1))),
        (128, _shapes((16, 128, 8, 1))),
    ],
    "temporal_attention_backward_float32": [
        (64, _shapes((32, 64, 4, 1))),
        (128, _shapes((16, 128, 4, 1))),
    ],
    "spatial_attention_forward_float32": [
        (64, _shapes((64, 32, 8, 1), (32, 64, 8, 1))),
        (128, _shapes((32, 32, 8, 1))),
    ],
    "spatial_attention_backward_queries_float32": [
        (64, _shapes((64, 32, 8, 1), (32, 32, 8, 1))),
        (128, _shapes((32, 32, 8, 1))),
    ],
    "spatial_attention_backward_keys_float32": [
        (64, _shapes((32, 64, 8, 1), (16, 32, 4, 1))),
        (128, _shapes((16, 16, 4, 1))),
    ],
    "group_attention_forward": [
        (16, _shapes((16, 16, 2, 1))),
        (32, _shapes((32, 32, 1, 1), (32, 32, 4, 1))),
        (64, _shapes((64, 64, 8, 1))),
    ],
    "group_attention_backward": [
        (16, _shapes((16, 16, 2, 1))),
        (32, _shapes((32, 32, 1, 1), (32, 32, 4, 1))),
        (64, _shapes((64, 64, 4, 1))),
    ],
    "layer_norm": [
        (1024, _shapes((1, 1024, 2, 1), (2, 1024, 2, 1), (2, 1024, 4, 1), (4, 1024, 8, 1), (8, 1024, 8, 1))),
        (2048, _shapes((1, 2048, 4, 1), (2, 2048, 8, 1), (4, 2048, 8, 1))),
        (8192, _shapes((1, 8192, 4, 1), (1, 8192, 16, 1))),
    ],
    "layer_norm_branch": [
        (1024, _shapes((4, 1024, 4, 1), (2, 1024, 4, 1), (8, 1024, 8, 1), (1, 1024, 4, 1))),
        (2048, _shapes((2, 2048, 4, 1), (1, 2048, 4, 1))),
    ],
    "column_sum": [
        (256, _shapes((32, 64, 4, 1), (64, 64, 4, 1), (128, 64, 8, 1))),
        (1 << 31, _shapes((16, 128, 4, 1), (64, 128, 8, 1), (32, 256, 8, 1), (32, 128, 4, 1))),
    ],
    "rotation": [
        (64, _shapes((16, 64, 2, 1), (64, 64, 4, 1), (64, 64, 8, 1), (128, 64, 8, 1))),
        (128, _shapes((32, 128, 4, 1), (32, 128, 8, 1))),
        (256, _shapes((16, 256, 4, 1), (16, 256, 8, 1))),
    ],
    "adapter_forward": [
        (128, _shapes((64, 64, 4, 3), (64, 64, 4, 2), (128, 32, 8, 3), (64, 128, 8, 2))),
        (256, _shapes((64, 64, 8, 2), (64, 32, 8, 2), (128, 32, 8, 2), (32, 64, 4, 3))),
    ],
    "adapter_backward": [
        (128, _shapes((64, 64, 8, 3), (32, 64, 4, 2), (32, 64, 4, 3), (64, 128, 8, 2))),
        (256, _shapes((32, 64, 8, 3), (32, 128, 8, 2), (16, 64, 4, 2))),
    ],
    "wide_activation": [
        (256, _shapes((16, 64, 4, 1), (8, 256, 4, 1), (16, 256, 4, 1), (32, 64, 8, 1), (64, 64, 8, 1))),
        (512, _shapes((16, 64, 4, 1), (32, 64, 8, 1), (8, 512, 4, 1), (4, 512, 4, 1), (16, 256, 8, 1))),
        (
            1 << 31,
            _shapes((16, 64, 4, 1), (32, 64, 8, 1), (16, 64, 2, 1), (8, 128, 4, 1), (16, 256, 8, 1), (8, 512, 8, 1)),
        ),
    ],
    "wide_product": [(1 << 31, _shapes((128, 128, 8, 3), (128, 128, 4, 3), (128, 64, 4, 3)))],
    "wide_product_sm90": [(1 << 31, _shapes((128, 256, 8, 3), (256, 128, 8, 3)))],
}


class Launch(NamedTuple):
    """What a block shape is chosen for: a kernel, the table's entry that serves it, and what its speed depends on."""

    kernel: str
    size: int
    architecture: int
    itemsize: int
    tokens: int  # of an attention's sequences, else 0
    entry: str  # kernels of one kind share an entry of the table


CHOSEN: dict[Launch, BlockShape] = {}


class Trial:
    """A block of one thread in which ``shapes`` go before all others; ``asked`` are the launches that were made."""

    def __init__(self, shapes: Mapping[Launch, BlockShape]) -> None:
        self.shapes = shapes
        self.asked: dict[Launch, BlockShape] = {}


_trial: ContextVar[Trial | None] = ContextVar("trial", default=None)


@contextmanager
def trying(shapes: Mapping[Launch, BlockShape]) -> Iterator[Trial]:
    """A :class:`Trial` of ``shapes``."""
    token = _trial.set(trial := Trial(shapes))
    try:
        yield trial
    finally:
        _trial.reset(token)


def on_trial() -> bool:
    """Whether a :class:`Trial` is under way in this thread."""
    return _trial.get() is not None


def block_shape(
    kernel: str, size: int, architecture: int, itemsize: int = 2, tokens: int = 0, entry: str = ""
) -> BlockShape:
    """The launch parameters of ``kernel`` for ``size`` and elements of ``itemsize`` bytes.

    ``entry`` is the table's, where it is not the kernel's name. Raises ValueError beyond the largest size that serves.
    """
    launch = Launch(kernel, size, architecture, itemsize, tokens, entry or kernel)
    trial = _trial.get()
    shape = (trial.shapes.get(launch) if trial else None) or CHOSEN.get(launch) or committed(launch)
    if trial:
        trial.asked[launch] = shape
    return shape


@functools.cache  # asked at every launch
def committed(launch: Launch) -> BlockShape:
    """The table's."""
    entry = next(entry for entry in reversed(_entries(launch)) if entry in _TABLE)
    return _serving(_TABLE, launch._replace(entry=entry))


def candidates(launch: Launch) -> list[BlockShape]:
    """What may be the fastest, the table's first."""
    found = [committed(launch)]
    for entry in _entries(launch):
        if entry in _CANDIDATES:
            with suppress(ValueError):  # none for so large a size
                listed: list[BlockShape] = _serving(_CANDIDATES, launch._replace(entry=entry))
                found += listed
    return list(dict.fromkeys(found))


def _entries(launch: Launch) -> list[str]:
    """The one for all cards, then, of halves, those of cards with 160 KiB of shared memory and more."""
    families = {"sm80": (80, 81), "sm90": (90, 120), "sm100": (100, 120)} if launch.itemsize < 4 else {}
    served = [family for family, (first, end) in families.items() if first <= launch.architecture < end]
    return [launch.entry, *(f"{launch.entry}_{family}" for family in served)]


_T = TypeVar("_T")


def _serving(table: Mapping[str, list[tuple[int, _T]]], launch: Launch) -> _T:
    entries = table.get(f"{launch.entry}_float32" if launch.itemsize == 4 else launch.entry) or table[launch.entry]
    for largest, found in entries:
        if launch.size <= largest:
            return found
    raise ValueError(f"{launch.entry}: size {launch.size} is beyond {entries[-1][0]}, the largest its kernel serves")


def kernel_name(kernel: Any, backward: bool = False) -> str:
    """The name of a kernel's shapes: its operator's, and the direction where one kernel has both."""
    return str(kernel.__name__).removesuffix("_kernel") + ("_backward" if backward else "")


def dot_precision(x: Tensor) -> str:
    """``input_precision`` of the products of ``x``: single precision for float32; nothing to say for halves."""
    return "tf32x3" if x.dtype == torch.float32 else "tf32"
