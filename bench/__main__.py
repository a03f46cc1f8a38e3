"""``python -m bench [step|kernels|memory|decode|features|all] [options]``: run one measuring program, or all of them.

Each program is the module of its name here, with ``run(options) -> dict``. Results are printed as tables; ``--json``
writes the dictionary of one program, ``--out`` one file a program, both with device, versions and date. `all` measures
on a GPU also what the goals ask of L/14, and ends with the table of goals (bench/goals.py).
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from rich.console import Console

from bench import goals

PROGRAMS = ("step", "kernels", "memory", "decode", "features")
_VERSIONS_OF = ("torch", "triton", "xformers", "nvidia-dali-cuda130", "av")


def main() -> int:
    """Parse the options, run what was asked for, write what it found."""
    options = _parser().parse_args()
    failed, measured = [], []
    for name, run, settings in _runs(options):
        print(f"bench {name}", flush=True)
        try:
            program = importlib.import_module(f"bench.{run}")
            results = {**_machine(options.device), "bench": run, **program.run(settings)}
        except Exception as error:
            if options.what != "all":
                raise
            print(f"bench {name} failed: {type(error).__name__}: {error}", file=sys.stderr)
            failed.append(name)
            continue
        measured.append(results)
        files = [options.json] if options.json and options.what != "all" else []
        files += [options.out / f"{name}.json"] if options.out else []
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(results, indent=2) + "\n")
    if options.what == "all":
        rows = goals.judge([*measured, *goals.read_results()])
        Console().print(goals.table(rows))
        if options.out:
            (options.out / "goals.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return 1 if failed else 0


def _runs(options: argparse.Namespace) -> Iterator[tuple[str, str, argparse.Namespace]]:
    """(name, program, its options) of everything to run."""
    if options.what != "all":
        yield options.what, options.what, options
        return
    for name in PROGRAMS:
        yield name, name, options
    if _kind(options.device).startswith("cuda") and not (options.model or options.frames or options.batch):
        large = {**vars(options), "model": goals.L14, "out": options.out and options.out / "l14"}
        yield "step_l14", "step", argparse.Namespace(**{**large, "frames": 8, "batch": 16})
        yield "memory_l14", "memory", argparse.Namespace(**{**large, "frames": 32, "batch": 4})


def _kind(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure aim-fast against its baselines.")
    parser.add_argument("what", nargs="?", default="all", choices=(*PROGRAMS, "all"))
    parser.add_argument("--device", default=None, help="cpu or cuda; the GPU where there is one when not given")
    parser.add_argument("--model", default=None, help="model name; each program has its own default")
    parser.add_argument("--frames", type=int, default=None, help="frames a clip")
    parser.add_argument("--batch", type=int, default=None, help="clips a batch")
    parser.add_argument(
        "--consumer", type=float, default=None, metavar="X",
        help="decode: clips/s that a training step takes; the measured step's when not given",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the results of one program")
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR", help="write DIR/<program>.json for each program"
    )
    return parser


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
