"""How long a training step would take on a GPU, predicted from what it launches (:mod:`bench.counted_step`).

A kernel takes as long as its bytes at the memory's rate or its FLOPs at the matrix units', whichever is longer, and at
least as long as a launch. Rates are the data sheet's times a share that is measured on an H200, or assumed, as
:data:`bench.gpu_rates.SHARES` says of each. Kernels follow one another without a gap, as in a CUDA graph; clocks under
load, caches and the way of the clips to the GPU are left out. Nothing here is measured, and it is printed apart.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table

from aim_fast.errors import UsageError
from aim_fast.models.counting.flops import count_costs
from aim_kernels.choices import Memory
from aim_kernels.scaled_product import OLDEST
from aim_kernels.scaled_rows import EIGHT_BITS
from bench import goals
from bench.counted_step import CountedStep, Kernel, count_step
from bench.gpu_rates import GPU, GPUS, LEAST, SHARES

SIDES = ("published", *get_args(Memory))
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": EIGHT_BITS}
_SHOWN = 12


def seconds(kernel: Kernel, gpu: GPU) -> float:
    """Of one kernel on ``gpu``."""
    return max(*limits(kernel, gpu).values(), LEAST)


def limits(kernel: Kernel, gpu: GPU) -> dict[str, float]:
    """Seconds by "bytes" and by "FLOPs"."""
    share = {word: about.value for word, about in SHARES.items()}
    matrix, flop = gpu.matrix * share["matrix"], kernel.flop
    ours = kernel.own and not kernel.product
    reached = share["own" if ours else "product bytes" if kernel.flop else "torch"]
    if kernel.dtype == torch.float32:
        rate = gpu.float32 * share["float32"]
    elif kernel.length:
        rate = matrix * share["torch attention backward" if "backward" in kernel.name else "torch attention"]
        flop *= (128 * math.ceil(kernel.length / 128) / kernel.length) ** 2
    elif ours:
        rate = matrix * share["own attention"]
    else:
        eight, own = kernel.dtype == EIGHT_BITS, kernel.own
        rate = matrix * share["product"] * (share["eight bits"] if eight else 1) * (share["own product"] if own else 1)
    return {"bytes": kernel.bytes / (gpu.memory * share["copy"] * reached), "FLOPs": flop / rate}


def predict(step: CountedStep, gpu: GPU) -> float:
    """Seconds of a step."""
    return sum(seconds(kernel, gpu) for kernel in step.kernels)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Predicts and prints. Keys, as ``bench step`` names what it measures: ``seconds`` of every side, ``clips_per_s``,
    ``ratio_vs_published_eager``, ``mfu``, ``peak_mib`` and ``speed_of_fast``; ``predicted_for`` the GPU; ``launches``
    and ``small_launches`` of every side; ``kernels`` of one, as :func:`_kernels` has them; ``own_products``, as
    :func:`_own_products` has them; what is ``assumed``. Raises UsageError for products in eight bits on a GPU that has
    none."""
    gpu = GPUS[options.gpu or "h200"]
    model, frames, batch = options.model or "aim_vit_b16_clip", options.frames or 8, options.batch or 32
    dtype = DTYPES[options.precision or "bf16"]
    if dtype == EIGHT_BITS and gpu.architecture < OLDEST:
        raise UsageError(f"--precision fp8: the compute capability of an {gpu.name} is below {OLDEST / 10}")
    results = predictions(model, frames, batch, gpu, dtype)
    shown = options.memory_word or "fast"
    results["kernels"] = _kernels(count_step(model, shown, frames, batch, gpu.architecture, dtype), gpu)
    results["own_products"] = _own_products(results, gpu, dtype)
    results["assumed"] = {word: f"{about.value:g}: {about.source}" for word, about in SHARES.items()}
    _print(results, shown)
    return results


def predictions(model: str, frames: int, batch: int, gpu: GPU, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """What :func:`run` returns of all sides."""
    baseline = torch.bfloat16 if dtype == EIGHT_BITS else dtype
    dtypes = {side: baseline if side == "published" else dtype for side in SIDES}
    steps = {side: count_step(model, side, frames, batch, gpu.architecture, dtypes[side]) for side in SIDES}
    spent = {side: predict(step, gpu) for side, step in steps.items()}
    products = count_costs(model, {"num_frames": frames, "num_classes": 10})[2]
    return {
        "model": model,
        "frames": frames,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "predicted_for": gpu.name,
        "seconds": spent,
        "clips_per_s": batch / spent["fast"],
        "ratio_vs_published_eager": spent["published"] / spent["fast"],
        "mfu": 2 * 2 * products * batch / spent["fast"] / (gpu.matrix * SHARES["matrix"].value),  # as bench.step has it
        "speed_of_fast": {side: spent["fast"] / spent[side] for side in SIDES[1:]},
        "peak_mib": {side: round(step.peak_bytes / 2**20, 1) for side, step in steps.items()},
        "launches": {side: len(step.kernels) for side, step in steps.items()},
        "small_launches": {side: len(step.small) for side, step in steps.items()},
    }


def _own_products(results: Mapping[str, Any], gpu: GPU, dtype: torch.dtype) -> dict[str, float]:
    """``fast`` where a tuning chose products of ours: its ``seconds``, and the share of the library's rate from which
    on they gain, ``even_at``. Empty where there are none."""
    step = count_step(results["model"], "fast", results["frames"], results["batch"], gpu.architecture, dtype, True)
    own = sum(seconds(kernel, gpu) for kernel in step.kernels if kernel.own and kernel.product)
    spent = predict(step, gpu)
    library = results["seconds"]["fast"] - (spent - own)  # its products and the passes after them
    return {"seconds": spent, "even_at": SHARES["own product"].value * own / library} if own else {}


def beside(measured: Mapping[str, Any], device_name: str) -> dict[str, Any] | None:
    """The predictions for the card and setting of a measured step (:mod:`bench.step`), with what each predicted time is
    of the measured one; None for a card that is not in :data:`GPUS`."""
    gpu = next((gpu for gpu in GPUS.values() if device_name.startswith(gpu.name.split(" SXM")[0])), None)
    if gpu is None:
        return None
    setting = (measured[key] for key in ("model", "frames", "batch"))
    found = predictions(*setting, gpu, getattr(torch, measured["dtype"]))
    taken = measured["seconds"]
    shortest = {side: taken.get(f"{side}_captured", taken[side]) for side in SIDES if side in taken}
    return {**found, "of_measured": {side: found["seconds"][side] / shortest[side] for side in shortest}}


def print_beside(found: dict[str, Any]) -> None:
    """The predictions of :func:`beside`, apart from the table of what is measured."""
    table = Table(
        "side", "predicted ms", "of measured", title=f"predicted for an {found['predicted_for']}, not measured"
    )
    for side, share in found["of_measured"].items():
        table.add_row(side, f"{found['seconds'][side] * 1e3:.1f}", f"{share:.2f}")
    Console().print(table)


def _kernels(step: CountedStep, gpu: GPU) -> list[tuple[str, int, float, float, float, str]]:
    """Rows of (name, launches, milliseconds, GB, TFLOP, what limits), the longest first; products by their sizes."""
    groups: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in step.kernels:
        large = kernel.product and kernel not in step.small
        groups[f"product {' × '.join(map(str, kernel.product))}" if large and kernel.product else kernel.name].append(
            kernel
        )
    rows = []
    for name, group in groups.items():
        by = {word: sum(limits(kernel, gpu)[word] for kernel in group) for word in ("bytes", "FLOPs")}
        total = sum(seconds(kernel, gpu) for kernel in group)
        limit = max(by, key=lambda word: by[word]) if 2 * max(by.values()) > total else "launches"
        moved, flop = sum(kernel.bytes for kernel in group), sum(kernel.flop for kernel in group)
        rows.append((name.removesuffix("_kernel"), len(group), total * 1e3, moved / 1e9, flop / 1e12, limit))
    return sorted(rows, key=lambda row: -row[2])


def _print(results: dict[str, Any], shown: str) -> None:
    console = Console(width=120)
    console.print(f"{results['model']}, {results['frames']} frames, {results['batch']} clips, {results['dtype']}")
    title = f"predicted for an {results['predicted_for']}, not measured"
    table = Table("side", "ms a step", "clips/s", "times published", "launches", "small ones", "peak GB", title=title)
    for side, spent in results["seconds"].items():
        times = f"{results['seconds']['published'] / spent:.2f}"
        counts = (str(results[key][side]) for key in ("launches", "small_launches"))
        peak = f"{results['peak_mib'][side] * 2**20 / 1e9:.1f}"
        table.add_row(side, f"{spent * 1e3:.1f}", f"{results['batch'] / spent:.0f}", times, *counts, peak)
    console.print(table)
    if own := results["own_products"]:
        clips = results["batch"] / own["seconds"]
        how = f"activation and slope within own products, which gain from {own['even_at']:.2f} of the library's rate on"
        console.print(f"fast with {how}: {own['seconds'] * 1e3:.1f} ms, {clips:.0f} clips/s")
    kernels = Table("kernel", "launches", "ms", "GB", "TFLOP", "limit", title=f"{shown}: the longest, predicted")
    for name, times, ms, moved, flop, limit in results["kernels"][:_SHOWN]:
        kernels.add_row(name, str(times), f"{ms:.2f}", f"{moved:.1f}", f"{flop:.2f}" if flop else "", limit)
    console.print(kernels)
    console.print(f"`fast` at {results['mfu']:.2f} of the matrix rate. Assumed, of the data sheet's rates:")
    for word, source in results["assumed"].items():
        console.print(f"  {word}: {source}")
    reached = [row for row in goals.judge([{**results, "bench": "roofline"}]) if "predicted" in row]
    if reached:
        console.print(goals.table(reached))
