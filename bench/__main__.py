"""``python -m bench PROGRAM [options]``: run one program (see ``PROGRAMS``), or ``all``.

Each program is the module of its name here, with ``run(options) -> dict``; all measure but ``roofline``, which predicts
a step on a GPU that need not be there. Results are printed as tables; ``--json``
writes the dictionary of one program, ``--out`` one file a program, both with device, versions and date. ``all``
measures on a GPU also what the goals ask of L/14, and ends with the table of goals (bench/goals.py). It runs each
program in a process of its own, so that one that fails, hangs or breaks the device costs no other its figures.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from aim_fast.errors import AimFastError
from aim_fast.files import write_whole
from aim_kernels.choices import Memory
from bench import goals
from bench.gpu_rates import GPUS

PROGRAMS = ("step", "kernels", "memory", "methods", "profile", "decode", "features", "roofline")
PRECISIONS = {"step": ("fp8",), "roofline": ("bf16", "fp16", "fp32", "fp8")}  # that a program can be asked for
_VERSIONS_OF = ("torch", "triton", "xformers", "nvidia-dali-cuda130", "av")


def main() -> int:
    """Parse the options, run what was asked for, write what it found."""
    options = _parser().parse_args()
    if options.precision not in (None, *PRECISIONS.get(options.what, ())):
        programs = " and ".join(program for program, known in PRECISIONS.items() if options.precision in known)
        print(f"--precision {options.precision} is for bench {programs}, not for {options.what}", file=sys.stderr)
        return 2
    try:
        return _all(options) if options.what == "all" else _one(options)
    except AimFastError as error:
        print(f"bench {options.what}: {error}", file=sys.stderr)
        return 2


def _one(options: argparse.Namespace) -> int:
    program = importlib.import_module(f"bench.{options.what}")
    header = {**_machine(options.device), "bench": options.what}

    for batch, gpu in itertools.product(options.batch or [None], options.gpu or [None]):
        file = options.json or (options.out and options.out / f"{options.what}.json")
        for one, among in ((batch, options.batch), (gpu, options.gpu)):
            if file and len(among or ()) > 1:
                file = file.with_stem(f"{file.stem}-{one}")

        def save(results: dict, file: Path | None = file) -> None:
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, json.dumps({**header, **results}, indent=2) + "\n")

        results = program.run(argparse.Namespace(**{**vars(options), "batch": batch, "gpu": gpu, "save": save}))
        if options.what == "step" and header["device"].startswith("cuda"):
            save(results)
            results["predicted"] = _predicted(results, header["device_name"])
        save(results)
    return 0


def _predicted(results: dict[str, Any], device_name: str) -> dict[str, Any] | None:
    """What the roofline says of a measured step, printed beside it; a fault of it costs no measured figure."""
    roofline = importlib.import_module("bench.roofline")
    try:
        found = roofline.beside(results, device_name)
    except Exception as error:
        print(f"nothing is predicted: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        return None
    if found:
        roofline.print_beside(found)
    return found


def _all(options: argparse.Namespace) -> int:
    failed, measured = [], []
    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    with tempfile.TemporaryDirectory() as folder:
        for name, program, settings in runs(options):
            print(f"bench {name}", flush=True)
            file = (options.out or Path(folder)) / f"{name}.json"
            for old in (file, *file.parent.glob(f"{name}-*.json")):
                old.unlink(missing_ok=True)
            command = [sys.executable, "-m", "bench", program, "--json", str(file)]
            for option, value in settings.items():
                command += [] if value is None else [f"--{option}", str(value)]
            fault = _fault(command, None if end is None else end - time.monotonic())
            if fault:
                print(f"bench {name} {fault}", file=sys.stderr, flush=True)
                failed.append(name)
            for made in (file, *sorted(file.parent.glob(f"{name}-*.json"))):  # of several batches or GPUs, one each
                measured += [json.loads(made.read_text())] if made.exists() else []
    rows = goals.judge([*measured, *goals.read_results()])
    Console().print(goals.table(rows))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        write_whole(options.out / "goals.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return 1 if failed else 0


def _fault(command: list[str], seconds: float | None) -> str | None:
    """Runs a command for so long at most; what went wrong, or None."""
    if seconds is not None and seconds <= 0:
        return "is left out: no time is left"
    try:
        return "failed, as said above" if subprocess.run(command, check=False, timeout=seconds).returncode else None
    except subprocess.TimeoutExpired:
        return "was stopped: the time is over"


def runs(options: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, program, its options) of everything to run, on a GPU first what it alone can tell."""
    settings = {key: getattr(options, key) for key in ("device", "model", "frames", "consumer", "out")}
    settings["batch"] = ",".join(map(str, options.batch)) if options.batch else None
    first, last = PROGRAMS[:3], PROGRAMS[3:-1]
    for name in first:
        yield name, name, settings
    as_the_goals = not (options.model or options.frames or options.batch)
    large = {**settings, "model": goals.L14, "out": options.out and options.out / "l14"}
    if _kind(options.device).startswith("cuda") and as_the_goals:
        for batch in (8, 64):
            yield f"step_{batch}", "step", {**settings, "batch": batch, "out": options.out and options.out / str(batch)}
        yield "step_l14", "step", {**large, "frames": 8, "batch": 16}
        yield "memory_l14", "memory", {**large, "frames": 32, "batch": 4}
    for name in last:
        yield name, name, settings
    predicted = {**settings, "gpu": "h100,h200"}
    yield "roofline", "roofline", predicted
    if as_the_goals:
        yield "roofline_fp8", "roofline", {**predicted, "precision": "fp8"}
        yield "roofline_l14", "roofline", {**predicted, "model": goals.L14, "frames": 8, "batch": 16}


def _kind(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure aim-fast against its baselines.")
    parser.add_argument("what", nargs="?", default="all", choices=(*PROGRAMS, "all"))
    parser.add_argument("--device", default=None, help="cpu or cuda; the GPU where there is one when not given")
    parser.add_argument("--model", default=None, help="model name; each program has its own default")
    parser.add_argument("--frames", type=int, default=None, help="frames a clip")
    parser.add_argument(
        "--batch", type=lambda text: [int(one) for one in text.split(",")], default=None, metavar="N[,N...]",
        help="clips a batch; of several each is measured, and its results are written to NAME-N.json",
    )  # fmt: skip
    parser.add_argument(
        "--consumer", type=float, default=None, metavar="X",
        help="decode: clips/s that a training step takes; the measured step's when not given",
    )  # fmt: skip
    parser.add_argument(
        "--gpu", type=_gpus, default=None, metavar="NAME[,NAME...]",
        help=f"roofline: the GPU to predict for, of {', '.join(GPUS)}; h200 when not given",
    )  # fmt: skip
    parser.add_argument(
        "--memory-word", choices=get_args(Memory), default=None, help="roofline: whose longest kernels are shown; fast"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS["roofline"], default=None,
        help="roofline: bf16 (when not given), fp16, fp32; roofline and step: fp8, ours with its frozen products in "
        "eight bits",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=None, metavar="X", help="all: stop after so long, with what there is"
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the results of one program")
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR", help="write DIR/<program>.json for each program"
    )
    return parser


def _gpus(text: str) -> list[str]:
    named = text.split(",")
    if unknown := [name for name in named if name not in GPUS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(GPUS)}")
    return named


def _machine(device: str | None) -> dict:
    import torch

    kind = _kind(device)
    name = torch.cuda.get_device_name() if kind.startswith("cuda") else platform.processor() or platform.machine()
    versions = {"python": platform.python_version()}
    for package in _VERSIONS_OF:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"device": kind, "device_name": name, "versions": versions, "date": date}


if __name__ == "__main__":
    sys.exit(main())
