"""The model that makes vectors of clips, opened from a run, a checkpoint or a recipe, and what tells it from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aim_fast.data import Sampling
from aim_fast.data.choices import VectorsPer
from aim_fast.data.storage.address import is_address, shown
from aim_fast.models.embedding import clip_vectors, frame_vectors, text_vectors
from aim_fast.training.clips import sampling_of
from aim_fast.training.devices import Place, single_place
from aim_fast.training.first_start import recall_kernels
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.recipe_model import build_model
from aim_fast.training.run import open_run
from aim_fast.training.trained_model import TrainedModel

__all__ = ["Embedder", "open_embedder"]

_RUNNING = ("device", "precision", "workers", "batch_size")  # fields that make no other model


@dataclass(frozen=True)
class Embedder:
    """A model that makes vectors, by process; ``asked`` opens it again, ``key`` is the same for models that make the
    same vectors of the same pixels."""

    trained: TrainedModel
    place: Place
    asked: dict[str, Any]
    key: str

    @property
    def sampling(self) -> Sampling:
        return sampling_of(self.trained.recipe)

    @torch.inference_mode()
    def vectors(self, clips: Tensor, per: VectorsPer = "clip") -> np.ndarray:
        """float32 [B, D] of uint8 [B, T, S, S, 3], or [B, T, D] per frame."""
        of = frame_vectors if per == "frame" else clip_vectors
        with self.place.autocast():
            return of(self.trained.model, clips.to(self.place.device, non_blocking=True)).cpu().numpy()

    @torch.inference_mode()
    def text(self, words: str) -> np.ndarray:
        """float32 [De]. Raises UsageError for a model that reads no words."""
        with self.place.autocast():
            return text_vectors(self.trained.model, [words])[0].cpu().numpy()


def open_embedder(run: str | None, recipe: str | None, fields: Mapping[str, Any]) -> Embedder:
    """The model of ``run``, a run or a checkpoint file, with fields as ``eval`` takes them; or of a recipe (None: the
    one that its model has), as ``features`` does: a trunk's weights, and nothing trained.

    Raises what opening the one and building the other raise.
    """
    place = single_place(fields.get("device", "auto"), fields.get("precision", "auto"))
    if run:
        trained = open_run(run, dict(fields), place)
    else:
        trained = build_model(load_recipe(recipe, fields), ["video"], place)
        recall_kernels(trained, place)
        trained.model.eval()
    trained = replace(trained, recipe=trained.recipe.replace(cache="none", features=None, cache_features=None))
    files = {"run": run, "recipe": recipe if recipe and Path(recipe).is_file() else None}
    files["weights"] = fields.get("weights")
    absolute = {name: str(Path(file).expanduser().absolute()) for name, file in files.items() if file and _here(file)}
    kept = {name: value for name, value in fields.items() if name not in _RUNNING}
    if is_address(root := kept.get("data_root")):
        kept["data_root"] = shown(str(root))
    asked = {"run": absolute.get("run", run), "recipe": absolute.get("recipe", recipe), "fields": kept}
    if "weights" in absolute:
        kept["weights"] = absolute["weights"]
    return Embedder(trained, place, asked, _key(trained))


def _here(file: str) -> bool:
    return Path(file).expanduser().exists()


def _key(trained: TrainedModel) -> str:
    """SHA-256 of the model's structure, its trunk, and what was trained but for a classifier, which no vector has."""
    model, identity = trained.model, trained.identity
    of_classes = {"num_classes", "class_names", "templates", "head_dropout"}
    structure = {name: value for name, value in identity.options.items() if name not in of_classes}
    digest = hashlib.sha256(json.dumps([identity.model, structure, identity.trunk_sha256], sort_keys=True).encode())
    for name, tensor in sorted(model.trained_tensors().items()):
        if not name.startswith("fc_cls."):
            digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
