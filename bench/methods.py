"""Every method on one trunk: time and memory of its training step beside AIM's, in one run.

Methods take turns, as ``aim-fast compare`` has them (:mod:`aim_fast.studies.comparison`): memory is a GPU's peak, on a
CPU the bytes that are kept for backward. A network beside the trunk has more rows: from what ``--cache-features``
stores of the trunk, the input of the lowest block that it reads or all that it reads, in the dtype that it has there.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from aim_fast.models.methods import METHODS
from aim_fast.models.registry import list_methods
from aim_fast.studies.comparison import count, measure, memory_meaning
from aim_fast.studies.contenders import Asked, Contender, find_contenders
from aim_fast.training.devices import single_place


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures and prints. By method: ``clips_per_s``, ``speed_of_aim``, ``memory_mib``, ``memory_of_aim``, trained
    ``parameters`` and ``gflops``, 10⁹ multiply-adds of a forward pass; ``refused``, a line on each method that the
    trunk does not take."""
    place = single_place(options.device or "auto", "auto")
    trunk, frames = options.model or "vit_b16_clip", options.frames or 8
    batch = options.batch or (32 if place.device.type == "cuda" else 1)
    contenders, refused = find_contenders([trunk], list_methods(), [], Asked("kinetics400", frames))
    contenders = [form for contender in contenders for form in (contender, *_from_storage(contender))]
    rows = {_name(contender): row for contender, row in zip(contenders, count(contenders))}
    measure(contenders, list(rows.values()), place, batch, 10 if place.device.type == "cuda" else 3)
    aim = rows["aim"]
    table = Table(
        *("method", "trained M", "G", "clips/s", "of AIM's speed", "MiB", "of AIM's"),
        title=f"methods on {trunk}, {frames} frames, batch {batch}; {memory_meaning(place)}",
    )
    found = {}
    for method, row in rows.items():
        if not (row.train and row.memory_mib and aim.train and aim.memory_mib):
            refused.append(f"{method}: {row.note}")
            continue
        found[method] = {
            "parameters": row.trainable,
            "gflops": row.gflops,
            "clips_per_s": row.train,
            "speed_of_aim": row.train / aim.train,
            "memory_mib": row.memory_mib,
            "memory_of_aim": row.memory_mib / aim.memory_mib,
        }
        speed, memory = found[method]["speed_of_aim"], found[method]["memory_of_aim"]
        trained = f"{row.trainable / 1e6:.2f}"
        table.add_row(
            method,
            trained,
            f"{row.gflops:.1f}",
            f"{row.train:.2f}",
            f"{speed:.2f}",
            f"{row.memory_mib:.0f}",
            f"{memory:.2f}",
        )
    Console().print(table)
    for line in refused:
        print(f"left out: {line}")
    return {
        "trunk": trunk,
        "frames": frames,
        "batch": batch,
        "dtype": str(place.dtype),
        "methods": found,
        "refused": refused,
    }


def _from_storage(contender: Contender) -> list[Contender]:
    """The same from what is stored of its frozen trunk, in each way that it can be."""
    method = METHODS.get(contender.identity.options.get("method", ""))
    if method is None or not method.beside:
        return []
    model = contender.build_without_memory()
    ways: list[Literal["lower", "all"]] = ["lower", "all"] if getattr(model, "lowest", 0) else ["all"]
    return [replace(contender, stored=way) for way in ways]


def _name(contender: Contender) -> str:
    method = contender.label.partition("method=")[2]
    return f"{method}, {contender.stored} stored" if contender.stored else method
