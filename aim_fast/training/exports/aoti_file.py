"""An AOTInductor package: machine code for one kind of processor, which ``torch._inductor.aoti_load_package`` and
libtorch run.

All operators of the engine are written out in it: as operators of this project a C++ program could not call them, and
AOTInductor (torch 2.11) hands their ``ScalarType`` operands over in the numbers of torch.export's schema, in which
float32 has the number that float64 has in torch.

Opening one loads its code into this process, which nothing can check: it is done where the user says so, alone.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from aim_fast.errors import CheckpointError, UsageError
from aim_fast.plain_path import plain_path
from aim_fast.training.exports.description import KEY
from aim_fast.training.exports.graph import first_line, quiet


def write(program: ExportedProgram, description: str, path: Path) -> None:
    """Compiles the program. Raises UsageError where there is no compiler, or it fails."""
    import torch._inductor

    with tempfile.TemporaryDirectory(prefix="aim-fast-") as folder, quiet():
        made = str(Path(folder) / "model.pt2")
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=made, inductor_configs={"aot_inductor.metadata": {KEY: description}}
            )
        except Exception as error:  # of inductor, of its code generators, of the compiler
            raise UsageError(
                f"AOTInductor cannot compile this model here: {first_line(error)}; it needs a C++ compiler, or take "
                "--format onnx"
            ) from error
        shutil.move(made, path)


def description_of(archive: zipfile.ZipFile) -> str | None:
    """What a package says of itself; None of one that is none of this project. Runs nothing of it."""
    for name in archive.namelist():
        if "/data/aotinductor/" in name and name.endswith("wrapper_metadata.json"):
            return json.loads(archive.read(name)).get(KEY)
    return None


def open_runner(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What gives the logits of clips. Raises CheckpointError for a damaged package and one for another machine."""
    import torch._inductor

    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise CheckpointError(f"{path}: is damaged (in {broken}); export the run again")
        if not any("/data/aotinductor/" in name and name.endswith(".so") for name in archive.namelist()):
            raise CheckpointError(f"{path}: is damaged (holds no machine code); export the run again")
    try:
        with quiet():
            model = torch._inductor.aoti_load_package(plain_path(path))
    except Exception as error:  # of the loader of shared libraries, and torch's own
        raise CheckpointError(
            f"{path}: cannot be loaded here ({first_line(error)}); export the run again on this machine"
        ) from None
    compiled_for = model.get_metadata().get("AOTI_DEVICE_KEY", "cpu")
    if compiled_for != device.type:
        raise UsageError(f"{path}: is compiled for {compiled_for}; use --device {compiled_for}")
    return model
