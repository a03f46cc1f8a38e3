"""``.pt2``: what ``torch.export.save`` writes, read without running anything that it holds but its graph.

``torch.export.load`` unpickles and evaluates what a file says (tensors that are no raw bytes, sample inputs, guards,
symbolic sizes, any function below ``torch.``). So a file is read through first, and refused where it has more of that
than this project writes: raw tensors, operators of aten and this engine, sizes that are products of the batch.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from aim_fast.errors import CheckpointError
from aim_fast.training.exports.description import KEY
from aim_fast.training.exports.graph import quiet

_DESCRIPTION = f"{KEY}.json"
_FUNCTION = re.compile(
    r"torch\.ops\.(aten|aim|prims)\.\w+\.\w+|torch\.ops\.higher_order\.wrap_with_autocast"
    r"|torch\.sym_(max|min|not|int|float)|_operator\.(getitem|add|sub|mul|floordiv|mod|neg|eq|ge|le|gt|lt)"
)
_SIZE = re.compile(
    r"(Symbol\('[su]\d+', (positive|nonnegative|integer)=True(, integer=True)?\)"
    r"|(Add|Mul|Pow|Integer|Max|Min|FloorDiv|Mod|PythonMod|CleanDiv)|\d+|[-+*/(), ]|\b[su]\d+\b)*"
)


def write(program: ExportedProgram, description: str, path: Path) -> None:
    with quiet(), path.open("wb") as file:
        torch.export.save(program, file, extra_files={_DESCRIPTION: description})


def description_of(archive: zipfile.ZipFile) -> str | None:
    """What an archive says of itself; None of one that is no pt2 of this project."""
    name = next((name for name in archive.namelist() if name.endswith(f"/extra/{_DESCRIPTION}")), None)
    return archive.read(name).decode(errors="replace") if name else None


def open_runner(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What gives the logits of clips. Raises CheckpointError for a damaged file, and for what could run code."""
    import aim_kernels  # noqa: F401  (registers the operators that a file may name)

    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise CheckpointError(f"{path}: is damaged (in {broken}); export the run again")
        _check(archive, path)
    with quiet(), path.open("rb") as file:
        program = torch.export.load(file)
        if device.type != "cpu":
            program = move_to_device_pass(program, device)
    model = program.module().requires_grad_(False)
    return lambda clips: model(clips)


def _check(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises CheckpointError where opening the archive could run what is no operator."""
    for name in archive.namelist():
        content = name.partition("/")[2]
        if content.startswith("models/"):
            _check_graph(json.loads(archive.read(name)), path)
        elif content.startswith("data/sample_inputs/"):
            try:
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            except Exception:
                raise _unsafe(path, "sample inputs that are Python objects") from None
        elif content.endswith("_config.json"):
            if any(entry.get("use_pickle", True) for entry in json.loads(archive.read(name))["config"].values()):
                raise _unsafe(path, "pickled tensors")
        elif content.startswith("data/aotinductor/"):
            raise _unsafe(path, "machine code")


def _check_graph(model: Any, path: Path) -> None:
    for key, value in _entries(model):
        if key == "expr_str" and not _SIZE.fullmatch(value):
            raise _unsafe(path, f"a size that is no product of numbers ({value[:40]})")
        if key == "nodes":
            for node in value:
                if not _FUNCTION.fullmatch(node["target"]):
                    raise _unsafe(path, f"{node['target'][:60]}, which is no operator of a model")
        if key == "guards_code" and value:
            raise _unsafe(path, "Python code")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(content, list):
        for value in content:
            yield from _entries(value)


def _unsafe(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: holds {what}, and is not opened, as that could run anything; export the run again with aim-fast"
    )
