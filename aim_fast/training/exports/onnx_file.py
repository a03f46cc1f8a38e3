"""``.onnx``: standard operators of one opset, which onnxruntime runs without this project.

Where the tensors are more than a protobuf holds, 2 GB, they lie in ``NAME.onnx.data`` beside it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from aim_fast.errors import CheckpointError, UsageError
from aim_fast.plain_path import plain_path
from aim_fast.training.exports.description import KEY
from aim_fast.training.exports.graph import first_line, quiet

OPSET = 20  # the first with Gelu as one operator
_LARGEST = 2**31 - 2**24  # bytes of tensors; the rest is for the graph
_EXTRA = 'pip install "aim-fast[export]"'


def check_packages() -> None:
    """Raises UsageError where what writes ONNX is not installed."""
    names = ("onnx", "onnxscript", "onnxruntime")
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise UsageError(f"--format onnx needs {', '.join(missing)}: {_EXTRA}, or take --format pt2")


def is_large(program: ExportedProgram) -> bool:
    """Whether its tensors are too many for one file."""
    return sum(tensor.nbytes for tensor in program.state_dict.values()) > _LARGEST


def write(program: ExportedProgram, description: str, path: Path, data: Path | None) -> None:
    """Writes the program to ``path``, its tensors to ``data``, a file beside it, where one is given.

    Raises UsageError for what has no standard operator.
    """
    import onnx_ir

    with quiet():
        names: dict[str, Any] = {"input_names": ["clips"], "output_names": ["logits"]}
        try:
            found = torch.onnx.export(program, dynamo=True, opset_version=OPSET, **names, verbose=False)
        except Exception as error:  # the exporter has its own, and those of all that it calls
            raise UsageError(f"not exported as onnx: {first_line(error)}; take --format pt2") from error
        assert found is not None
        model = found.model
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.shape = onnx_ir.Shape(["batch", *list(value.shape)[1:]])  # type: ignore[arg-type]
        for node in model.graph:
            node.metadata_props.clear()  # which name folders of this machine
        model.metadata_props[KEY] = description
        onnx_ir.save(model, path, external_data=data.name if data else None)


def name_data(path: Path, name: str) -> None:
    """Has a written file look for its tensors in another file beside it."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    path.write_bytes(model.SerializeToString())


def looks_like(head: bytes) -> bool:
    """Whether a file's first bytes are those of an ONNX model: its IR version, a small number, and another field."""
    return head[:1] == b"\x08" and head[1:2] < b"\x40" and head[2:3] in b"\x12\x1a\x22\x3a\x42" and head[8:9] != b"{"


def description_of(path: Path) -> str | None:
    """What a model says of itself; None of one that this project did not write."""
    return _session(path, ["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map.get(KEY)


def open_runner(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What gives the logits of clips, by onnxruntime: on a GPU where its package has that."""
    import onnxruntime

    there = onnxruntime.get_available_providers()
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    session = _session(path, [name for name in (*wanted, "CPUExecutionProvider") if name in there])

    def run(clips: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"clips": clips.cpu().numpy()})[0]).to(clips.device)

    return run


def _session(path: Path, providers: list[str]) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(f"{path}: is an ONNX model and needs onnxruntime: {_EXTRA}") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(plain_path(path), options, providers=providers)
    except Exception as error:  # onnxruntime has a dozen, and none of them public
        raise CheckpointError(
            f"{path}: is no ONNX model that can be opened ({first_line(error)}); export the run again"
        ) from None
