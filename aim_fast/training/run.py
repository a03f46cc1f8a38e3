"""A run's model, opened again for evaluation, prediction and conversion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from aim_fast.data.index.selection import read_lines
from aim_fast.data.views import Video
from aim_fast.errors import CheckpointError, UsageError
from aim_fast.models.loading import load_weights, trunk_names
from aim_fast.models.registry import create_model
from aim_fast.training.checkpoint import ADAPTERS, Checkpoint, copy_values, find_checkpoint, read_checkpoint
from aim_fast.training.devices import Place, single_place
from aim_fast.training.exports.opening import open_exported, read_exported
from aim_fast.training.first_start import recall_kernels
from aim_fast.training.part_groups import UNTOLD
from aim_fast.training.prediction import Prediction, predict_video
from aim_fast.training.recipe import coerce
from aim_fast.training.recipe_file import load_recipe, typed
from aim_fast.training.run_folder import saved_recipe
from aim_fast.training.trained_file import is_numbered, name_classes, read_trained
from aim_fast.training.trained_model import TrainedModel, move_to_place
from aim_fast.training.watching import Watch
from aim_fast.training.wise_ft import check_wise_ft, interpolate_weights


@dataclass(frozen=True)
class LoadedRun(TrainedModel):
    """A trained model on the device of its ``place``, in eval mode.

    ``model``: an ``nn.Module``; uint8 [B, T, S, S, 3] RGB gives logits [B, classes], T = ``model.num_frames`` and
    S = ``model.img_size``. ``classes``: their names, in order. ``recipe``: what it was trained by.
    """

    place: Place

    def predict(self, video: Video, top_k: int = 5, *, repeat_frames: bool = False) -> Prediction:
        """The ``top_k`` most probable classes of a video: a path, or frames uint8 [F, H, W, 3] RGB.

        Its views are those of ``recipe.evaluation.views``. ``repeat_frames`` takes a video with fewer frames than T.
        Raises DataError where the video cannot be read, UsageError for a model whose classes nobody named.
        """
        check_named(self, self.source)
        return predict_video(self, self.place, video, top_k, repeat_frames)

    def watch(
        self, source: int | str, top_k: int = 5, *, window: float | None = None, stride: float | None = None
    ) -> Watch:
        """Iterates over the predictions of a camera, by its number, or of an address, a window at a time as it comes.

        ``window`` and ``stride`` are seconds: of a window (4 if not given; a model with a frame interval has its own),
        and between windows (half a window). It ends where the address ends, or by ``close()``. Raises DataError where
        the source cannot be opened, stalls for ten seconds or breaks off.
        """
        check_named(self, self.source)
        return Watch(self, self.place, source, top_k, window, stride)


def load_run(path: str | Path, device: str = "auto", precision: str = "auto", **overrides: Any) -> LoadedRun:
    """A trained run in Python: ``load_run("runs/ssv2").model(frames)`` gives logits, ``.classes`` names them.

    Args:
        path: a run's folder (its best checkpoint), a checkpoint folder, or a file of a trained model.
        device: auto, cpu, cuda or cuda:N.
        precision: of the products of ``predict``: auto, bf16, fp16, fp32 or fp8.
        overrides: recipe fields, such as ``weights`` where the trunk has moved or ``views``; ``class_names``, a file of
            classes for a model that reads names; ``wise_ft``, the share of the trained weights beside the frozen.

    Raises:
        CheckpointError: no run, an incomplete one, or another trunk's. WeightsError: weights that are not there or do
        not fit. UsageError: a field that cannot be.
    """
    place = single_place(device, precision)
    said = {} if precision == "auto" else {"precision": precision}  # which an export may contradict
    return LoadedRun(**vars(open_run(path, typed(overrides) | said, place)), place=place)


def check_named(run: TrainedModel, path: str | Path) -> None:
    """Raises UsageError for a model of which nobody said what classes it tells apart."""
    if not run.classes:
        raise UsageError(f"{path}: names no classes to tell apart; give --class-names FILE, one a line")


def open_run(
    path: str | Path, overrides: dict[str, Any], place: Place, classes: list[str] | None = None
) -> TrainedModel:
    """Opens a run's folder (its best checkpoint), a checkpoint folder, a published AIM checkpoint file, or an export.

    The model is in eval mode, on the place's device. ``overrides`` are recipe fields typed on the command line;
    ``--weights`` names the frozen trunk where it has moved. ``classes`` are the names for a published checkpoint, which
    holds none. An override ``class_names`` is a file of other classes to score, one a line, by a model that reads
    names. An override ``run_code`` lets an export be opened that holds machine code.
    """
    path, overrides = Path(path), dict(overrides)
    run_code = overrides.pop("run_code", False)
    if description := read_exported(path):
        return open_exported(path, description, overrides, place, run_code)
    others, share = overrides.pop("class_names", None), overrides.pop("wise_ft", None)
    names = read_lines(others, "class names") if others else None
    if path.is_file() and path.name != ADAPTERS:
        if share is not None:
            raise UsageError(
                f"{path}: --wise-ft needs the frozen weights, which a file does not hold; give a run's folder"
            )
        run = read_trained(path, overrides)
        if classes is not None and is_numbered(run.classes):
            run = name_classes(run, classes)
    else:
        run = restore_run(path, overrides, share)
        typed = {name: coerce(name, value, "command line") for name, value in overrides.items()}
        run = replace(run, recipe=run.recipe.replace(**typed))
    move_to_place(run.model, place)
    recall_kernels(run, place)
    run.model.eval()
    if names:
        run.model.set_classes(names)
        run = run.with_classes(names)
    return run


def open_named_run(path: str | Path, overrides: dict[str, Any], place: Place) -> TrainedModel:
    """:func:`open_run` where no data set names the classes; raises UsageError for a run in which nobody did."""
    run = open_run(path, overrides, place)
    check_named(run, path)
    return run


def restore_run(path: str | Path, overrides: dict[str, Any], wise_ft: float | None = None) -> TrainedModel:
    """The model of a run's best checkpoint, or of a checkpoint folder, on the CPU in fp32.

    ``overrides``: recipe fields as typed; ``weights`` names the trunk where it has moved. ``wise_ft``: share of the
    trained tensors in a mean with their frozen values, see training/wise_ft.py.
    """
    folder = find_checkpoint(path, "best")
    checkpoint = read_checkpoint(folder)
    identity, tensors = checkpoint.identity, checkpoint.tensors
    _refuse_other_structure(path, checkpoint, overrides)
    recipe = saved_recipe(folder) or load_recipe(None, {"model": identity.model})
    torch.manual_seed(recipe.run.seed)
    model = create_model(identity.model, **identity.options)
    of_trunk = trunk_names(model)
    if {name for name, _ in model.named_parameters() if name in of_trunk} <= tensors.keys():  # the trunk was trained
        lines = []
    else:
        weights = overrides.get("weights") or recipe.model.weights or identity.weights
        key = overrides.get("weights_key") or recipe.model.weights_key
        report = load_weights(model, weights, seed=recipe.run.seed, key=key)
        lines = list(report.lines)
        if report.sha256 != identity.trunk_sha256:
            raise CheckpointError(
                f"{folder / ADAPTERS}: was trained on another trunk than {weights}; give its --weights "
                f"(SHA-256 {identity.trunk_sha256[:12]}…, this one has {report.sha256[:12]}…)"
            )
    trainable = model.trained_tensors()
    if odd := sorted(set(trainable) ^ set(tensors)):
        raise CheckpointError(f"{folder / ADAPTERS}: does not fit {identity.model}: {', '.join(odd)}")
    if wise_ft is not None:
        check_wise_ft(model, wise_ft, folder)
        tensors = interpolate_weights(trainable, tensors, wise_ft)
        lines.append(f"weights are {wise_ft:g} adapted + {1 - wise_ft:g} frozen (WiSE-FT)")
    copy_values(trainable, tensors)
    return TrainedModel(model, identity, recipe, str(folder), lines)


def _refuse_other_structure(path: str | Path, checkpoint: Checkpoint, overrides: dict[str, Any]) -> None:
    """A run says itself what its model is: options that say otherwise are not passed over."""
    saved = {**checkpoint.identity.options, "frames": checkpoint.identity.options["num_frames"]}
    saved["model"] = checkpoint.identity.model
    for name in ("model", "frames", *UNTOLD):
        if name in overrides and coerce(name, overrides[name], "command line") != saved.get(name):
            trained = f"with {saved[name]}" if name in saved else "without"
            raise UsageError(
                f"--{name.replace('_', '-')} {overrides[name]}: {path} was trained {trained}; "
                "leave it out (it is for published checkpoints, which do not say theirs)"
            )
