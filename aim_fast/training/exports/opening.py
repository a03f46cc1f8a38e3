"""An exported file as a model: its format, told by its bytes, and what ``eval`` and ``predict`` ask of a model."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aim_fast.errors import CheckpointError, UsageError
from aim_fast.models.identity import Identity
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weights.files import WeightsFile, is_program
from aim_fast.models.weights.fit import Fit
from aim_fast.training.devices import Place
from aim_fast.training.exports import aoti_file, onnx_file, pt2_file
from aim_fast.training.exports.description import Description, read_description
from aim_fast.training.recipe import coerce
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.trained_file import fields_told
from aim_fast.training.trained_model import TrainedModel

_OWN = "is an exported file, which says itself what its model is: leave"  # in the message about an option
_FOREIGN = "that says no classes and no sampling; export a run's own: aim-fast export RUN"
_TAKEN = ("dataset", "data_root", "accept_gaps", "views", "view_starts", "random_views", "interval", "batch_size")
_RUNNING = ("device", "workers")
_WORDS = {"float32": ("auto", "fp32"), "float16": ("auto", "fp16")}


class ExportedModel(VideoModel):
    """Clips uint8 [B, T, H, W, 3] to logits float32 [B, num_classes] by ``run``, in the file's own precision."""

    def __init__(self, run: Callable[[Tensor], Tensor], description: Description) -> None:
        super().__init__()
        self.run, self.description = run, description
        self.num_frames, self.img_size = description.frames, description.side
        self.num_classes, self.class_names = len(description.classes), tuple(description.classes)
        self.mean, self.std = tuple(description.input["mean"]), tuple(description.input["std"])

    @property
    def config(self) -> dict[str, Any]:
        return self.description.options

    def forward_features(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8:
            raise ValueError(f"an exported model takes uint8 clips and normalises them itself, got {x.dtype}")
        self.check_clips(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.run(x)

    def forward_head(self, features: Tensor) -> Tensor:
        return features

    def freeze(self) -> None:
        """Nothing in it trains."""

    def reset_parameters(self) -> None:
        """It has none."""

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        raise UsageError("an exported model has its weights and takes no others: export another run")


def read_exported(path: Path) -> Description | None:
    """What an exported file says of itself, whatever its name; None for any other file. Runs nothing of it.

    Raises CheckpointError for an ONNX model or a program of torch.export that this project did not write, and for a
    damaged one.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(16)
    text = None
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                text = pt2_file.description_of(archive) or aoti_file.description_of(archive)
                foreign = text is None and is_program(archive.namelist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return None  # a weights file, perhaps, whose reader says what is wrong
        if foreign:
            raise CheckpointError(f"{path}: is a program of torch.export {_FOREIGN}")
    elif onnx_file.looks_like(head):
        text = onnx_file.description_of(path)
        if text is None:
            raise CheckpointError(f"{path}: is an ONNX model {_FOREIGN}")
    return read_description(text, path) if text else None


def check_code(path: Path, description: Description, run_code: bool) -> None:
    """Raises CheckpointError for a file of machine code where ``run_code`` does not allow it."""
    if description.format == "aoti" and not run_code:
        raise CheckpointError(
            f"{path}: holds machine code, which would run in this process unchecked; add --run-code if you made it"
        )


def open_model(path: Path, description: Description, device: torch.device, run_code: bool) -> ExportedModel:
    """The model of an exported file on a device. Raises CheckpointError for a file that is damaged or not safe.

    ``run_code``: whether machine code may be loaded from it.
    """
    check_code(path, description, run_code)
    if description.format == "aoti":
        run = aoti_file.open_runner(path, device)
    else:
        run = (onnx_file if description.format == "onnx" else pt2_file).open_runner(path, device)
    return ExportedModel(run, description)


def open_exported(
    path: Path, description: Description, overrides: dict[str, Any], place: Place, run_code: bool
) -> TrainedModel:
    """The model with the sampling that its file says, ``overrides`` (recipe fields as typed) on top.

    Raises UsageError for an override of what the file says itself.
    """
    name = next((name for name in overrides if name not in (*_TAKEN, *_RUNNING, "frames", "precision")), None)
    if name:
        raise UsageError(f"{path}: {_OWN} --{name.replace('_', '-')} out")
    if overrides.get("precision", "auto") not in _WORDS[description.precision]:
        raise UsageError(f"{path}: {_OWN} --precision out, it computes in {description.precision}")
    if int(coerce("frames", overrides.get("frames", description.frames), "command line")) != description.frames:
        raise UsageError(f"{path}: {_OWN} --frames out, it takes {description.frames}")
    model = open_model(path, description, place.device, run_code)
    identity = Identity(description.model, description.options, description.classes, "", str(path))
    said = description.sampling
    sampling = {"interval": said["interval"] or 0, "views": f"{said['clips']}x{said['crops']}"}
    sampling |= {"view_starts": "ends"} if said["ends"] else {}
    recipe = load_recipe(None, {"model": description.model}).replace(**fields_told(identity)).replace(**sampling)
    typed = {key: coerce(key, value, "command line") for key, value in overrides.items() if key in _TAKEN + _RUNNING}
    return TrainedModel(model.eval(), identity, recipe.replace(**typed), str(path), [])
