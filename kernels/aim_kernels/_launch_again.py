"""Calls of Triton kernels whose later ones cost the host less.

Around a launch an operator's Python allocates results, asks for block shapes and binds operands to parameters, and
Triton tells what the kernel is compiled for and looks it up: the same each time for operands of the same kinds. A
:class:`Remembered` function knows by these what it allocated and what its launches handed to the compiled kernels, and
from then on does just that, with other pointers. It does so only

- where all tensors are on the current device and begin at multiples of 16 bytes, which kernels are compiled for;
- where it was watched twice, did nothing beside allocating, viewing and launching, and the same both times;
- where each pointer is that of one operand, or of one new tensor, and of no other;
- where no kernel asks for memory of its own, which it does of the thread's allocator;
- while nobody hooks into launches, as a profiler does, and no block shape is on trial.

All else is the function as it was written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton import jit as _jit
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from aim_kernels import block_shapes
from aim_kernels._replays import CONSTANTS, STREAM, TENSORS, UNKNOWN, Launch, Plan, Plans, kind, pause

_ALLOCATE = frozenset(f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty"))
_HOOKS = slice(6, 9)  # their places in what a compiled kernel is handed, behind grid, stream, function and metadata
_KINDS = 4096  # of operands that a function remembers; beyond them it begins anew


class Remembered:
    """``function``, of tensors and constants, whose calls are remembered."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._plans = Plans()
        self._seen: dict[Hashable, Plan | None] = {}  # of kinds that were met once or watched once
        _ALL.append(self)

    def __call__(self, *operands: Any) -> Any:
        if block_shapes.on_trial():
            return self.function(*operands)
        results = self._plans(*operands)
        if results is None:
            return self._watch(operands)
        return self.function(*operands) if results is False else results

    def forget(self) -> None:
        """Has it begin anew."""
        self._plans.clear()
        self._seen.clear()

    def _watch(self, operands: tuple[Any, ...]) -> Any:
        tensors = [x for x in operands if isinstance(x, Tensor)]
        addresses = [x.data_ptr() for x in tensors if x.numel()]
        if len({*addresses}) < len(addresses):  # a pointer would not tell whose it is
            return self.function(*operands)
        key = kind(operands)
        if key not in self._seen:
            if len(self._seen) + len(self._plans) >= _KINDS:
                self.forget()
            self._seen[key] = None
            return self.function(*operands)
        if not _one.acquire(blocking=False):
            return self.function(*operands)
        try:
            with _Record(tensors) as record:
                results = self.function(*operands)
            plan = record.plan(results)
            before = self._seen.pop(key, UNKNOWN)
            if before is None and plan:
                self._seen[key] = plan
            elif before is not UNKNOWN:
                self._plans.keep(operands, plan if plan == before else None)
        finally:
            _one.release()
        return results


class _Record(TorchDispatchMode):
    """Sees what a call of this thread does to ``tensors``; whoever calls meanwhile is not seen."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.tensors, self.given = [*tensors], len(tensors)
        self.launches: list[Launch] = []
        self.whole = True  # nothing but allocations, views and launches that are understood
        self.thread = threading.get_ident()

    def __enter__(self) -> _Record:
        global _record
        pause(1)
        _record = self
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _record
        _record = None
        pause(-1)
        super().__exit__(kind, fault, trace)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in _ALLOCATE and result.device == self.tensors[0].device:
            self.tensors.append(result)
        elif not func.is_view and func._schema.name != "aten::promote_types":
            self.whole = False
        return result

    def launched(self, compiled: Any, run: Callable[..., None], handed: tuple[Any, ...]) -> None:
        """Takes a launch by Triton, where it is of the form that ``Kernel`` knows."""
        stream, runtime = driver.active.get_current_stream(driver.active.get_current_device()), knobs.runtime
        hooks = (runtime.launch_enter_hook, runtime.launch_exit_hook)
        known = handed[STREAM : _HOOKS.start] == (stream, compiled.function, compiled.packed_metadata)
        known = known and not compiled.metadata.global_scratch_size
        values, pointers = [*handed], []
        values[STREAM], values[_HOOKS] = None, (None,) * 3
        for at, value in enumerate(values):
            if type(value) in TENSORS:
                source, offset = self._source(value)
                known = known and source >= 0
                values[at] = None
                pointers.append((at, source, offset))
            elif at >= _HOOKS.stop and type(value) not in CONSTANTS:
                known = False
        self.whole = self.whole and known and handed[_HOOKS][1:] == hooks
        self.launches.append(Launch(run, values, pointers))

    def plan(self, results: Any) -> Plan | None:
        """What was seen, of a call with ``results``."""
        alone = isinstance(results, Tensor)
        returned = []
        for result in (results,) if alone else results:
            source, offset = self._source(result)
            tensor = self.tensors[source]
            self.whole = self.whole and source >= 0 and offset == 0 and result.dtype == tensor.dtype
            self.whole = self.whole and (result is tensor or (result.is_contiguous() and tensor.is_contiguous()))
            self.whole = self.whole and result.numel() == tensor.numel()
            returned.append((source, None if result is tensor else result.shape))
        made = [(x.shape, x.stride(), x.dtype) for x in self.tensors[self.given :]]
        return Plan(made, self.launches, returned, alone) if self.whole and self.launches else None

    def _source(self, x: Tensor) -> tuple[int, int]:
        """Within which ``x`` begins, and the bytes from where that does; -1 where it is not clear."""
        for i, tensor in enumerate(self.tensors):
            if tensor is x:
                return i, 0
        address = x.data_ptr()
        around = [i for i, tensor in enumerate(self.tensors) if 0 <= address - tensor.data_ptr() < _extent(tensor)]
        return (around[0], address - self.tensors[around[0]].data_ptr()) if len(around) == 1 else (-1, 0)


def _extent(x: Tensor) -> int:
    """The bytes from the first of its elements to the last one's end."""
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride()))
    return x.itemsize * (1 + last) if x.numel() else 0


_record: _Record | None = None
_one = threading.Lock()  # of whoever records, so that a kernel that is watched becomes again what it was
_ALL: list[Remembered] = []


def forget() -> None:
    """Has all begin anew, after a choice among kernels or block shapes changed."""
    for function in _ALL:
        function.forget()


class Kernel(JITFunction[Any]):
    """``triton.JITFunction``, whose launches a record sees."""

    def run(self, *unnamed: Any, grid: Any, warmup: bool, **operands: Any) -> Any:
        record = _record
        if record is None or record.thread != threading.get_ident() or warmup:
            return super().run(*unnamed, grid=grid, warmup=warmup, **operands)
        compiled = super().run(*unnamed, grid=grid, warmup=True, **operands)
        before, launcher = len(record.launches), compiled.run

        def watched(*handed: Any) -> Any:
            if record.thread == threading.get_ident():
                record.launched(compiled, launcher, handed)
            return launcher(*handed)

        compiled._run = watched
        try:
            return super().run(*unnamed, grid=grid, warmup=False, **operands)
        finally:
            compiled._run = launcher
            record.whole = record.whole and len(record.launches) == before + 1


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit``."""
    return _jit(function) if knobs.runtime.interpret else Kernel(function)
