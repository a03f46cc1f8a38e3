"""Replays of operators' calls on a GPU: ``Plans``, in C++ where that is built, else in Python, three times as long.

``Plans()(*operands)`` is what a plan that was kept for such operands returns: it makes its tensors and launches its
kernels. False tells to run the function as it is written, None that operands of these kinds are not known yet.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from triton import knobs

from aim_kernels import extension

STREAM = 3  # its place in what a compiled kernel is handed
TENSORS = frozenset((Tensor, nn.Parameter))
CONSTANTS = frozenset((int, float, bool, str, type(None), torch.dtype))


class Launch(NamedTuple):
    """What a compiled kernel is handed, but for the stream and, at some places, pointers: source and offset.

    A source is the place of a tensor among the operands and, after them, those that are made.
    """

    run: Callable[..., None]
    handed: list[Any]
    pointers: list[tuple[int, int, int]]


class Plan(NamedTuple):
    """What a call does."""

    made: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]
    launches: list[Launch]
    returned: list[tuple[int, torch.Size | None]]  # source, and the shape where it is another
    alone: bool  # returned as it is, in no tuple


class PlansInPython:
    """Plans by the kinds of operands: shapes, strides and dtypes of tensors, types and values of constants."""

    def __init__(self) -> None:
        self._plans: dict[Hashable, Plan | None] = {}

    def __len__(self) -> int:
        return len(self._plans)

    def __call__(self, *operands: Any) -> Any:
        tensors = [x for x in operands if type(x) in TENSORS]
        addresses = [x.data_ptr() for x in tensors if x.is_cuda]
        aligned = not any(address % 16 for address in addresses)
        if _paused or not addresses or len(addresses) < len(tensors) or not aligned or _hooked():
            return False
        device = tensors[0].get_device()
        if device != torch.cuda.current_device() or not (key := kind(operands)):
            return False
        plan = self._plans.get(key, UNKNOWN)
        if plan is None or plan is UNKNOWN:
            return None if plan is UNKNOWN else False
        for shape, stride, dtype in plan.made:
            tensors.append(torch.empty_strided(shape, stride, dtype=dtype, device=tensors[0].device))
            addresses.append(tensors[-1].data_ptr())
        stream = torch._C._cuda_getCurrentRawStream(device)
        for run, handed, pointers in plan.launches:
            values = [*handed]
            values[STREAM] = stream
            for at, source, offset in pointers:
                values[at] = addresses[source] + offset
            run(*values)
        results = [tensors[i] if shape is None else tensors[i].view(shape) for i, shape in plan.returned]
        return results[0] if plan.alone else tuple(results)

    def keep(self, operands: tuple[Any, ...], plan: Plan | None) -> None:
        """Has calls of operands of these kinds follow ``plan``, or run as they are written."""
        if key := kind(operands):
            self._plans[key] = plan

    def clear(self) -> None:
        """Knows no kinds any more."""
        self._plans.clear()


def kind(operands: tuple[Any, ...]) -> tuple[Hashable, ...]:
    """What a plan depends on; () where an operand is neither a tensor as such nor a constant."""
    told: list[Any] = []
    for x in operands:
        if type(x) in TENSORS:
            told += (x.dtype, x.shape, x.stride(), x.get_device())
        elif type(x) in CONSTANTS:
            told += (type(x), x)
        else:
            return ()
    return tuple(told)


def pause(by: int) -> None:
    """With 1 every call runs as it is written, until as often ended with -1."""
    global _paused
    _paused += by


def _hooked() -> bool:
    """Whether somebody is told of launches."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


_paused = 0
UNKNOWN = Plan([], [], [], False)  # in the place of one, or of None for what runs as it is written
Plans: Any = PlansInPython
if torch.backends.cuda.is_built() and (_cpp := extension.replays()):
    _cpp.begin(Tensor, nn.Parameter, torch.dtype, knobs.runtime, torch._C._cuda_getCurrentRawStream)
    Plans, pause = _cpp.Plans, _cpp.pause
