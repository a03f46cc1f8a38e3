"""Compiling what is about to be tried, on all cores: one kernel after another, some hundred would take minutes.

Each candidate is launched as far as Triton's compiler; there the launch is left, and what it would compile goes to
worker processes, which need no GPU. What they compile lies in Triton's cache when the candidate is tried. No result
hangs on it: what fails here is compiled, or fails, when it is tried.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import torch

from aim_fast.cores import default_workers
from aim_fast.tuning.calls import Call
from aim_fast.tuning.operands import checked_rows, make_operands
from aim_fast.tuning.selection import Shapes
from aim_kernels.block_shapes import candidates, trying
from aim_kernels.registration import OPERATORS

_WORKERS = 16
_SECONDS = 150  # for all of them


def compile_candidates(calls: Sequence[Call], device: torch.device, settled: Shapes) -> None:
    """Fills Triton's cache with the kernels of ``calls`` on a CUDA ``device``, and all candidates but the settled."""
    if device.type != "cuda":
        return
    with suppress(Exception), _collected() as jobs:
        seen = set(settled)
        for call in calls:
            part = make_operands(call, device, checked_rows(call))
            for launch in _launched(call, part, {}):
                shapes = (
                    [settled[launch]] if launch in settled else candidates(launch)[1:] if launch not in seen else []
                )
                seen.add(launch)
                for shape in shapes:
                    _launched(call, part, {launch: shape})
    with suppress(Exception):
        distinct = list({repr(job): job for job in jobs}.values())
        workers = min(default_workers(), _WORKERS, len(distinct))
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, mp_context=context)
            try:
                for _ in pool.map(_compile, distinct, timeout=_SECONDS):
                    pass
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _launched(call: Call, operands: list[Any], shapes: Shapes) -> Shapes:
    """Runs a call's kernels as far as they come, and says which shapes they asked for."""
    triton = OPERATORS[call.operator].triton
    with trying(shapes) as trial, suppress(Exception):
        if triton:
            triton(*operands)
    return trial.asked


@contextmanager
def _collected() -> Iterator[list[tuple[Any, ...]]]:
    """A block in which Triton's kernels are not launched; what each would have had compiled."""
    from triton.runtime.jit import JITFunction

    jobs: list[tuple[Any, ...]] = []
    before = JITFunction._do_compile

    def collected(
        self: Any, key: Any, signature: Any, device: Any, constexprs: Any, options: Any, attrs: Any, warmup: Any
    ) -> None:
        target = self.device_caches[device][2]
        jobs.append((self.fn.__module__, self.__name__, signature, constexprs, attrs, target, dict(options.__dict__)))

    JITFunction._do_compile = collected
    try:
        yield jobs
    finally:
        JITFunction._do_compile = before


def _compile(job: tuple[Any, ...]) -> None:
    """In a worker."""
    import triton
    from triton.compiler import ASTSource

    module, name, signature, constexprs, attrs, target, options = job
    with suppress(Exception):
        kernel = getattr(importlib.import_module(module), name)
        triton.compile(ASTSource(kernel, signature, constexprs, attrs), target=target, options=options)
