"""Where a training step spends its time: its kernels by time, and how long the host takes to issue them.

``fast`` and the published structure, each a step of AdamW as in :mod:`bench.step`, profiled once after it is warm. On a
GPU the rows are the device's kernels, each with its launches and milliseconds; ``busy_ms`` is their sum, ``wall_ms`` a
step's time without a profiler and ``issue_ms`` the processor time it takes the host: where that is longer than
``busy_ms``, the step is bound by Python, and a CUDA graph or a larger batch helps. On a CPU the rows are operators.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.step import make_sides, training_step

_SHOWN = 30


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures and prints; of each side ``wall_ms``, ``issue_ms``, ``busy_ms``, ``launches``, and ``kernels``, rows of
    (name, launches, milliseconds), the longest first."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    name = options.model or "aim_vit_b16_clip"
    batch, frames = options.batch or (32 if on_gpu else 1), options.frames or 8
    sides = make_sides(name, frames, device)
    size = sides["published"].img_size
    clips = torch.randint(0, 256, (batch, frames, size, size, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    results: dict[str, Any] = {"model": name, "batch": batch, "frames": frames, "sides": {}}
    for side in ("published", "fast"):
        step = training_step(sides[side], clips, labels, device)
        found = results["sides"][side] = _times(step, on_gpu, 8 if on_gpu else 2) | _kernels(step, on_gpu)
        title = f"{side}: {found['launches']} launches, {found['busy_ms']:.1f} ms busy"
        title += f", {found['wall_ms']:.1f} ms a step, {found['issue_ms']:.1f} ms to issue it"
        table = Table("ms", "launches", "kernel", title=title)
        for kernel, launches, ms in found["kernels"][:_SHOWN]:
            table.add_row(f"{ms:.3f}", str(launches), kernel[:90])
        Console(width=120).print(table)
    return results


def _times(step: Callable[[], object], on_gpu: bool, steps: int) -> dict[str, float]:
    for _ in range(3 if on_gpu else 1):
        step()
    _wait(on_gpu)
    start, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    issued = time.process_time() - processor
    _wait(on_gpu)
    return {"wall_ms": (time.perf_counter() - start) / steps * 1e3, "issue_ms": issued / steps * 1e3}


def _kernels(step: Callable[[], object], on_gpu: bool) -> dict[str, Any]:
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        step()
        _wait(on_gpu)
    spent: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in profiler.events() or ():
        if event.device_type == wanted and not event.is_user_annotation:
            spent[event.name][0] += 1
            spent[event.name][1] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3
    rows = sorted(((name, int(count), ms) for name, (count, ms) in spent.items()), key=lambda row: -row[2])
    return {"launches": sum(row[1] for row in rows), "busy_ms": sum(row[2] for row in rows), "kernels": rows}


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()
