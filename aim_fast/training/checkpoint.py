"""What a run keeps on disk: ``RUN/checkpoints/{last,best}``, written so that a kill at any moment loses nothing.

``last`` and ``best`` are links to folders ``step-NNNNNNNN``, each with

- ``adapters.safetensors``: the trained tensors under their published names, in fp32; its metadata names the model, its
  sizes, the classes and the frozen trunk's SHA-256, so that the file alone says what it belongs to;
- ``state.pt``: optimiser, gradient scaler, step, whether its validation is done, and best result, read with
  ``weights_only=True``. No generator state is needed: every random number of a step is a function of (seed, step,
  rank).

A folder is written under a temporary name, synced and renamed; then the link is replaced in one rename. A folder that
no link names any more is removed.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from aim_fast.errors import CheckpointError
from aim_fast.files import replacing, sync
from aim_fast.models.identity import Identity
from aim_fast.plain_path import plain_path
from aim_fast.printable import printable

ADAPTERS = "adapters.safetensors"
STATE = "state.pt"
_METADATA = ("model", "options", "classes", "trunk_sha256", "weights")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, read."""

    folder: Path
    tensors: dict[str, Tensor]
    identity: Identity
    state: dict[str, Any] | None


def save_checkpoint(
    folder: Path, names: tuple[str, ...], tensors: dict[str, Tensor], state: dict[str, Any], identity: Identity
) -> None:
    """Writes one checkpoint below ``folder`` and points the links ``names`` (of ``last``, ``best``) at it.

    An epoch's end is saved twice, before and after its validation (``validated`` in ``state``), in two folders, so that
    no folder is replaced that a link names. Raises CheckpointError when the disk refuses; what was there before stays
    whole.
    """
    target = folder / f"step-{state['step']:08d}{'' if state.get('validated', True) else '-unvalidated'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # written from memory: torch.save to a disk that is full raises what says nothing of the disk
        packed = io.BytesIO()
        torch.save(state, packed)
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / ADAPTERS).write_bytes(pack_adapters(tensors, identity))
            (temporary / STATE).write_bytes(packed.getbuffer())
        for name in names:
            with replacing(folder / name) as link:
                link.symlink_to(target.name, target_is_directory=True)
        sync(folder)
        _remove_unlinked(folder)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {target}: not written ({error.strerror or error}); make room, then --resume"
        ) from None


def pack_adapters(tensors: Mapping[str, Tensor], identity: Identity) -> bytes:
    """The content of ``adapters.safetensors``."""
    metadata = {
        "model": identity.model,
        "options": json.dumps(identity.options),
        "classes": json.dumps(identity.classes),
        "trunk_sha256": identity.trunk_sha256,
        "weights": printable(identity.weights),  # metadata is UTF-8; the recipe has the path, byte for byte
    }
    return save({name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}, metadata)


def _remove_unlinked(folder: Path) -> None:
    """Removes checkpoints that neither link names any more, and what a killed process left under temporary names."""
    kept = {os.readlink(folder / name) for name in ("last", "best") if (folder / name).is_symlink()}
    for path in folder.iterdir():
        if path.is_symlink():
            if path.name.startswith("."):
                path.unlink()
        elif path.name.lstrip(".").startswith("step-") and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


@torch.no_grad()
def copy_values(into: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copies each of ``values`` into the tensor of its name, in place."""
    for name, value in values.items():
        into[name].copy_(value)


def find_checkpoint(path: str | Path, prefer: str = "best") -> Path:
    """The folder with ``adapters.safetensors`` that a run, a checkpoint folder or the file itself names.

    ``prefer`` is the link that a run's folder stands for, ``best`` or ``last``; the other one is taken when it is
    missing.
    """
    path = Path(path)
    if path.is_file():
        if path.name != ADAPTERS:
            raise CheckpointError(f"{path}: not a checkpoint of this project; give a run's folder or its {ADAPTERS}")
        return path.parent
    if not path.exists():
        raise CheckpointError(f"{path}: does not exist; give the --output folder of a training run")
    other = "last" if prefer == "best" else "best"
    for candidate in (path, path / "checkpoints" / prefer, path / "checkpoints" / other):
        if (candidate / ADAPTERS).exists():
            return candidate
    raise CheckpointError(f"{path}: holds no checkpoint; give the --output folder of a run that has written one")


def read_checkpoint(folder: Path, with_state: bool = False) -> Checkpoint:
    """Reads one checkpoint folder. Raises CheckpointError for files that are missing, cut short or of another kind."""
    path = folder / ADAPTERS
    try:
        with safe_open(plain_path(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); use another checkpoint"
        ) from None
    if missing := [name for name in _METADATA if name not in metadata]:
        raise CheckpointError(f"{path}: its metadata lacks {', '.join(missing)}; it was not written by aim-fast train")
    identity = Identity(
        metadata["model"],
        json.loads(metadata["options"]),
        json.loads(metadata["classes"]),
        metadata["trunk_sha256"],
        metadata["weights"],
    )
    state = None
    if with_state:
        state = _read_state(folder / STATE)
    return Checkpoint(folder, tensors, identity, state)


def _read_state(path: Path) -> dict[str, Any]:
    what = "damaged, so training cannot go on from it; train again with another --output"
    if not path.is_file():
        what = "missing, so training cannot go on from it; train again with another --output"
    try:
        state = torch.load(plain_path(path), map_location="cpu", weights_only=True)
    except Exception:  # of any kind: zip, pickle and torch each have their own, with pages of advice
        raise CheckpointError(f"{path}: {what}") from None
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError(f"{path}: {what}")
    return state
