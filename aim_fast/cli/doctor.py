"""``aim-fast doctor``: what this machine has, and which path each part will take on it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RUN_FIELDS, RecipeCommand, recipe_options, typed
from aim_fast.errors import UsageError

PACKAGES = (
    "torch", "torchvision", "triton", "xformers", "nvidia-dali-cuda130", "av", "timm", "open_clip_torch", "einops",
)  # fmt: skip


@click.command("doctor", cls=RecipeCommand, short_help="Say what this machine has and which paths it takes.")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--gpus", type=click.IntRange(1), help="with --model: what training on so many GPUs needs")
@click.option(
    "--clips-per-s",
    type=click.FloatRange(0, min_open=True),
    metavar="R",
    help="with --gpus: of the step on each, instead of the rate measured here",
)
@recipe_options(("dataset", "data_root", "model", "frames", "interval", "img_size", "batch_size", *RUN_FIELDS))
def command(as_json: bool, gpus: int | None, clips_per_s: float | None, **options: Any) -> None:
    """What this machine has, and which path each part will take; with --dataset what limits training on it.

    \b
    aim-fast doctor
    aim-fast doctor --dataset ssv2 --data-root DIR --model aim_vit_b16_clip
    aim-fast doctor --dataset ssv2 --data-root DIR --model aim_vit_b16_clip --gpus 64 --clips-per-s 500
    """
    fields = typed(options)
    if gpus and not fields.keys() >= {"dataset", "model"}:
        raise UsageError("--gpus: what they need depends on data and model: give --dataset, --data-root and --model")
    if clips_per_s and not gpus:
        raise UsageError("--clips-per-s: says the rate of each of several GPUs: give --gpus")
    if "dataset" not in fields and (odd := [name for name in fields if name not in RUN_FIELDS]):
        raise UsageError(
            f"--{odd[0].replace('_', '-')}: is for measuring a data set: give --dataset and --data-root too"
        )
    facts: dict[str, dict[str, Any]] = {
        "machine": _machine(),
        "packages": {name: _version(name) for name in PACKAGES},
        "paths": {name: _guarded(find) for name, find in PATHS.items()},
        "tuned kernels": _tuned(),
    }
    if "dataset" in fields:
        title = f"data set {fields['dataset']}"
        facts[title] = _limits(fields, as_json, gpus, clips_per_s)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for title, rows in facts.items():
        click.echo(title)
        for name, value in rows.items():
            click.echo(f"  {name:<20} {value}")


def _limits(fields: dict[str, Any], whole: bool, gpus: int | None, rate: float | None) -> dict[str, Any]:
    from aim_fast.studies.data_limits import measure_limits
    from aim_fast.training.recipe_file import load_recipe

    found = measure_limits(load_recipe(None, fields), "model" in fields, gpus, rate)
    return dataclasses.asdict(found) if whole else found.lines


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _guarded(find: Callable[[], str]) -> str:
    """What ``find`` says; a part that breaks on this machine is reported, not fatal."""
    try:
        return find()
    except Exception as error:
        return f"not usable: {' '.join(str(error).split())[:160]}"


def _machine() -> dict[str, str]:
    import torch

    facts = {
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpu": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "gpu": "none",
    }
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            key = "gpu" if number == 0 else f"gpu {number}"
            facts[key] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, sm_{card.major}{card.minor}"
    return facts


def _precision() -> str:
    from aim_fast.training.devices import choose_device, choose_dtype
    from aim_kernels.scaled_product import scaled_products_missing

    device = choose_device("auto")
    missing = scaled_products_missing(device)
    fp8 = f"no fp8: {missing}" if missing else "fp8" if device.type == "cuda" else "fp8 as float32 products"
    return f"{str(choose_dtype('auto', device)).removeprefix('torch.')} on {device}; {fp8}"


def _decoding() -> str:
    import av

    if importlib.util.find_spec("nvidia.dali") is None:
        return f"PyAV {av.__version__} for evaluation and prediction; training needs DALI, which is not installed"
    import torch

    if torch.cuda.is_available():
        return "DALI on the GPU; PyAV for what it cannot decode"
    return "DALI for VP8, VP9 and MJPEG; PyAV on the CPU for H.264 and the rest"


def _kernels() -> str:
    from aim_kernels import extension

    fault = extension.fault()
    return f"plain PyTorch ({fault})" if fault else "C++ part built"


def _xformers() -> str:
    if importlib.util.find_spec("xformers") is None:
        return "not installed: PyTorch's attention"
    # it logs a page when its extension does not load; here one line says so
    logging.getLogger("xformers").setLevel(logging.ERROR)
    from xformers import _cpp_lib

    try:
        _cpp_lib._register_extensions()
    except Exception:
        return f"loads without its compiled extension{_built_for(_cpp_lib)}: PyTorch's attention"
    return "compiled extension loads"


def _built_for(library: Any) -> str:
    """Which torch xformers' compiled part loads with, as far as its wheel says so."""
    import torch

    try:
        built = json.loads((Path(library.__file__).parent / "cpp_lib.json").read_text())["version"]["torch"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f", which is for torch {built} and not {torch.__version__}"


def _tuned() -> dict[str, str]:
    """Of every card of this machine, what its record holds."""
    import torch

    from aim_fast.tuning.record import card_of, read_record

    facts = {}
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = card_of(torch.device("cuda", number))
        choices, reason = read_record(card)
        if reason or not choices:
            facts[card.name] = f"made at the next start: {reason or 'nothing was measured yet'}"
            continue
        other = [f"{choice.call.operator} {choice.name}" for choice in choices.values() if choice.name != "committed"]
        facts[card.name] = f"{len(choices)} calls in {card.file}: {len(other)} changed"
        facts |= {f"{card.name}, {place}": what for place, what in enumerate(dict.fromkeys(other), 1)}
        faults = dict.fromkeys(line for choice in choices.values() for line in choice.lines)
        facts |= {f"{card.name}, left out {place}": what for place, what in enumerate(faults, 1)}
    return facts or {"gpu": "none to tune for"}


PATHS: dict[str, Callable[[], str]] = {
    "precision": _precision,
    "decoding": _decoding,
    "CPU operators": _kernels,
    "xformers": _xformers,
}
