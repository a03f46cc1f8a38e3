"""Tensors out of a weights file, whatever wrote it: torch, TorchScript or safetensors.

What a file is, is read from its first bytes, not from its name. Pickles are opened with ``weights_only=True`` alone, so
that a file can hold no code. Everything that can be wrong with a file is a WeightsError of one line.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aim_fast.errors import WeightsError
from aim_kernels.choices import Activation

DESCRIPTION = "aim_fast"  # the key of an export's description, JSON, in its metadata
_LARGEST_SAFETENSORS_HEADER = 100_000_000  # bytes, as the format's own reader has it


class WeightsFile(NamedTuple):
    """The tensors of a file by name, and the activation of its MLPs where the file tells ("quick_gelu" or "gelu").

    ``description``: of a model that this project exported, its ``model`` (a name), ``options`` and ``classes``.
    """

    tensors: dict[str, Tensor]
    activation: Activation | None = None
    description: dict[str, Any] | None = None


def read_weights(path: str | Path) -> WeightsFile:
    """The state dict of a ``.pt``, ``.pth``, ``.bin`` or ``.safetensors`` file, or of a TorchScript archive.

    A training checkpoint's state dict is taken from its entry ``state_dict`` or ``model``; names stay as in the file.
    Raises WeightsError for a file that is missing, empty, truncated or holds anything but tensors.
    """
    path = Path(path)
    if not path.exists():
        remedy = "download it and give the file" if re.match(r"\w+:/", str(path)) else "check the path"
        raise WeightsError(f"weights file {path} does not exist: {remedy}")
    if not path.is_file():
        raise WeightsError(f"weights {path} is a folder: name the file in it (.pt, .pth or .safetensors)")
    try:
        with path.open("rb") as file:
            head = file.read(128)
    except OSError as error:
        raise WeightsError(f"weights file {path} cannot be read: {error.strerror}") from error
    if not head:
        raise WeightsError(f"weights file {path} is empty (0 bytes): copy or download it again")
    if head.startswith(b"PK\x03\x04"):
        return _read_archive(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_SAFETENSORS_HEADER:
        return _read_safetensors(path)
    if head.startswith(b"\x80"):
        return _pickled(path, _unpickle(path, mmap=False))
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"weights file {path} is a Git LFS pointer, not the weights: run `git lfs pull` beside it")
    raise WeightsError(f"{path} is not a weights file: expected a torch, TorchScript or safetensors file")


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"weights file {path} is a truncated or damaged safetensors file: get it again") from error
    activation = metadata.get("activation")
    description = _description(metadata.get(DESCRIPTION))
    return WeightsFile(tensors, activation if activation in get_args(Activation) else None, description)


def _read_archive(path: Path) -> WeightsFile:
    """A zip archive: what ``torch.save`` or ``torch.jit.save`` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise WeightsError(f"weights file {path} is truncated or damaged: copy or download it again") from error
    if any(name.endswith("/constants.pkl") for name in names):
        return _read_torchscript(path)
    if any(name.endswith("data.pkl") for name in names):
        return _pickled(path, _unpickle(path, mmap=True))
    raise WeightsError(f"{path} is not a weights file: a zip archive without tensors")


def _read_torchscript(path: Path) -> WeightsFile:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"weights file {path} is a damaged TorchScript archive: get it again") from error
    kinds = {child.original_name for name, child in module.named_modules() if name.startswith("visual.")}
    activation: Activation | None = "quick_gelu" if "QuickGELU" in kinds else "gelu" if "GELU" in kinds else None
    return WeightsFile(dict(module.state_dict()), activation)


def _pickled(path: Path, content: Any) -> WeightsFile:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    description = _description(meta.get(DESCRIPTION)) if isinstance(meta, Mapping) else None
    activation = description["options"].get("activation") if description else None
    return WeightsFile(_state_dict(path, content), activation, description)


def _description(text: Any) -> dict[str, Any] | None:
    """What an export says of its model; None for anything else, as others may use the name too."""
    try:
        description = json.loads(text)
        return description if description.keys() >= {"model", "options", "classes"} else None
    except (TypeError, ValueError, AttributeError):
        return None


def _unpickle(path: Path, mmap: bool) -> Any:
    # Published checkpoints carry evaluation scores as NumPy scalars beside their tensors.
    numpy_scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [(numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed += [np.dtype, *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")}]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds Python objects ({blocked[1]})" if blocked else "holds something else"
        raise WeightsError(
            f"weights file {path} {what} where tensors belong and is not opened: save a state_dict with torch.save"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise WeightsError(f"weights file {path} is truncated or damaged: copy or download it again") from error


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"weights file {path} holds no state dict: expected tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"weights file {path} holds no state dict: its entry {name!r} is no tensor")
    return dict(content)
