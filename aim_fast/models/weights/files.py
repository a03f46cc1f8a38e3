"""Tensors out of a weights file, whatever wrote it: torch, TorchScript, safetensors or flax, in one file or in parts.

What a file is, is read from its first bytes, not from its name. Pickles are opened with ``weights_only=True`` alone, so
that a file can hold no code. Everything that can be wrong with a file is a WeightsError of one line.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aim_fast.errors import WeightsError
from aim_fast.models.weights.entries import take_entry
from aim_fast.models.weights.flax_file import is_msgpack, read_flax
from aim_fast.models.weights.folders import Settings, parts_of, read_index, read_settings, weights_in
from aim_fast.plain_path import plain_path
from aim_kernels.choices import Activation

DESCRIPTION = "aim_fast"  # the key of an export's description, JSON, in its metadata
_LARGEST_SAFETENSORS_HEADER = 100_000_000  # bytes, as the format's own reader has it


class WeightsFile(NamedTuple):
    """The tensors of a file by name, and the activation of its MLPs where the file tells ("quick_gelu" or "gelu").

    ``description``: of a model that this project exported, its ``model`` (a name), ``options`` and ``classes``;
    ``settings``: what a configuration beside it tells; ``lines`` for a reader: which of several was taken.
    """

    tensors: dict[str, Tensor]
    activation: Activation | None = None
    description: dict[str, Any] | None = None
    settings: Settings = Settings()
    lines: tuple[str, ...] = ()


def read_weights(path: str | Path, key: str | None = None) -> WeightsFile:
    """The state dict of a ``.pt``, ``.pth``, ``.bin`` or ``.safetensors`` file, or of a TorchScript archive; in several
    files with their index, or in a folder, with what its configuration tells.

    Of a training checkpoint's state dicts the one with a trunk is taken, or that which ``key`` names; names stay as in
    the file. Raises WeightsError for a file that is missing, empty, truncated or holds anything but tensors.
    """
    path = Path(path)
    if not path.exists():
        remedy = "download it and give the file" if re.match(r"\w+:/", str(path)) else "check the path"
        raise WeightsError(f"weights file {path} does not exist: {remedy}")
    settings = Settings()
    if path.is_dir():
        settings, path = read_settings(path), weights_in(path)
    if path.suffix == ".json":
        places = read_index(path)
        file = _join([path.with_name(name) for name in sorted(set(places.values()))], places)
    elif parts := parts_of(path):
        file = _join(parts, {})
    else:
        file = _read_file(path)
    entry = take_entry(file.content, key, str(path))
    found = WeightsFile(entry.tensors, file.activation, file.description, Settings(), entry.lines)
    return with_settings(found, settings)


def with_settings(file: WeightsFile, settings: Settings) -> WeightsFile:
    """The file with what the configuration beside it tells, its activation too where the file does not."""
    told = cast(Activation | None, settings.activation if settings.activation in get_args(Activation) else None)
    return file._replace(settings=settings, activation=file.activation or told)


class _Content(NamedTuple):
    """What a file holds: names to tensors, or those below other names."""

    content: Any
    activation: Activation | None = None
    description: dict[str, Any] | None = None


def _join(parts: Sequence[Path], places: Mapping[str, str]) -> _Content:
    """The tensors of all parts; ``places``: in which of them the index has each, where there is one."""
    tensors: dict[str, Tensor] = {}
    for part in parts:
        own = take_entry(_read_file(part).content, None, str(part)).tensors
        if lost := sorted(name for name, place in places.items() if place == part.name and name not in own):
            raise WeightsError(f"weights file {part} lacks {lost[0]}, which its index has there: download it again")
        tensors |= {name: tensor for name, tensor in own.items() if places.get(name, part.name) == part.name}
    return _Content(tensors)


# What other files begin with that are given for weights.
_OTHERS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights: run `git lfs pull` beside it",
    b"<": "is a web page, not the weights: download the file itself (a page often asks for a login first)",
    b"\x89HDF": "is an HDF5 file (Keras, TensorFlow): take the model's PyTorch or safetensors file",
    b"GGUF": "is a GGUF file, of quantised weights: take the model's PyTorch or safetensors file",
    b"\x1f\x8b": "is compressed with gzip: unpack it and give the file in it",
}


def _read_file(path: Path) -> _Content:
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
        return _pickled(_unpickle(path, mmap=False))
    if is_msgpack(head):
        return _Content(read_flax(path))
    for begin, what in _OTHERS.items():
        if head.lstrip().startswith(begin):
            raise WeightsError(f"weights file {path} {what}")
    raise WeightsError(f"{path} is not a weights file: expected a torch, TorchScript or safetensors file")


def _read_safetensors(path: Path) -> _Content:
    try:
        with safe_open(plain_path(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"weights file {path} is a truncated or damaged safetensors file: get it again") from error
    description = _description(metadata.get(DESCRIPTION))
    told = metadata.get("activation") or (description and description["options"].get("activation"))
    known = cast(Activation | None, told if told in get_args(Activation) else None)
    return _Content(tensors, known, description)


def _read_archive(path: Path) -> _Content:
    """A zip archive: what ``torch.save`` or ``torch.jit.save`` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # BadZipFile, and what zipfile's own parsing of damaged fields raises
        raise WeightsError(f"weights file {path} is truncated or damaged: copy or download it again") from error
    if any(name.endswith("/constants.pkl") for name in names):
        return _read_torchscript(path)
    if any(name.endswith("data.pkl") for name in names):
        return _pickled(_unpickle(path, mmap=True))
    if is_program(names):
        raise WeightsError(
            f"{path} is not a weights file: a program of torch.export; torch.save its state_dict and give that"
        )
    raise WeightsError(f"{path} is not a weights file: a zip archive without tensors")


def is_program(names: Iterable[str]) -> bool:
    """Whether an archive with files of these names is what ``torch.export.save`` or AOTInductor wrote."""
    return any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names)


def _read_torchscript(path: Path) -> _Content:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(plain_path(path), map_location="cpu")
    except Exception as error:
        raise WeightsError(f"weights file {path} is a damaged TorchScript archive: get it again") from error
    kinds = {child.original_name for name, child in module.named_modules() if name.startswith("visual.")}
    activation: Activation | None = "quick_gelu" if "QuickGELU" in kinds else "gelu" if "GELU" in kinds else None
    return _Content(dict(module.state_dict()), activation)


def _pickled(content: Any) -> _Content:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    description = _description(meta.get(DESCRIPTION)) if isinstance(meta, Mapping) else None
    activation = description["options"].get("activation") if description else None
    return _Content(content, activation, description)


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
    # DINO, MAE and DeiT keep the options of their command line, X-CLIP its configuration, a dictionary.
    allowed += [argparse.Namespace, pathlib.PosixPath, (OrderedDict, "yacs.config.CfgNode")]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            return torch.load(plain_path(path), map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds Python objects ({blocked[1]})" if blocked else "holds something else"
        raise WeightsError(
            f"weights file {path} {what} where tensors belong and is not opened: save a state_dict with torch.save"
        ) from error
    except Exception as error:  # of any kind: zip, pickle and torch each have their own, and newer ones have others
        raise WeightsError(f"weights file {path} is truncated or damaged: copy or download it again") from error
