"""A run as one file that needs no run, ``pt2``, ``onnx`` or ``aoti``, held against it before it takes its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from aim_fast.errors import CheckpointError, UsageError
from aim_fast.files import replacing
from aim_fast.training.agreement import agreement, clips_for, logits_of
from aim_fast.training.devices import single_place
from aim_fast.training.exports import aoti_file, onnx_file, pt2_file
from aim_fast.training.exports.description import describe
from aim_fast.training.exports.graph import trace
from aim_fast.training.exports.opening import open_model, read_exported
from aim_fast.training.recipe import coerce
from aim_fast.training.report import check_writable
from aim_fast.training.run import open_named_run
from aim_fast.training.run_folder import run_folder

FORMATS = {"pt2": "model.pt2", "onnx": "model.onnx", "aoti": "model.aoti.pt2"}  # and what files are called


def export(
    path: str,
    format: str,
    output: str | None,
    precision: str,
    clips: Sequence[str],
    fields: dict[str, Any],
    say: Callable[[str], None],
) -> Path:
    """Writes the run at ``path``, or a trained file, in a format of :data:`FORMATS`, and gives the file.

    ``output``: where to, beside the run's recipe when not given. ``precision``: "float32" or "float16". ``clips``:
    videos to check on, see :func:`clips_for`. ``fields``: recipe fields as typed; ``backend`` "reference" writes out
    the operators of a pt2. Raises UsageError for what cannot be exported, CheckpointError for an export that differs
    from the run; nothing is written then.
    """
    fields = dict(fields)
    backend = coerce("backend", fields.pop("backend"), "command line") if "backend" in fields else None
    target = Path(output) if output else (run_folder(path) or Path()) / FORMATS[format]
    data = target.with_name(f"{target.name}.data")
    _check(path, format, target, data, backend)
    place = single_place(fields.pop("device", "cpu"), "fp32")
    run = open_named_run(path, fields, place)
    for line in run.lines:
        say(line)
    frames, where = clips_for(run, place, clips)
    wanted = logits_of(run.model, frames, place.device)
    description = describe(run, format, precision)
    device = place.device if format == "aoti" else torch.device("cpu")
    program = trace(run.model, getattr(torch, precision), device, format != "pt2" or backend == "reference")
    apart = format == "onnx" and onnx_file.is_large(program)
    with replacing(target) as made, replacing(data) if apart else nullcontext() as made_data:
        if format == "onnx":
            onnx_file.write(program, description.to_json(), made, made_data)
        else:
            (aoti_file if format == "aoti" else pt2_file).write(program, description.to_json(), made)
        model = open_model(made, description, place.device, run_code=True)
        found = agreement(logits_of(model, frames, place.device), wanted, precision, where)
        if not found.holds:
            raise CheckpointError(f"{path}: not exported as {format} in {precision}: {found}; take another format")
        if apart:
            onnx_file.name_data(made, data.name)
    say(f"{target}: {format}, {precision}: {found}")
    return target


def _check(path: str, format: str, target: Path, data: Path, backend: str | None) -> None:
    """What can be said before anything is opened."""
    if format == "onnx":
        onnx_file.check_packages()
    if backend == "fused" and format != "pt2":
        raise UsageError(f"--backend fused: {format} has no operators of this project; leave it out, or take pt2")
    if read_exported(Path(path)):
        raise UsageError(f"{path}: is exported already; give the run that it is of")
    for file in (target, data):
        if file.exists() or file.is_symlink():
            raise UsageError(f"{file}: is there already; name another --output")
    check_writable(target)
