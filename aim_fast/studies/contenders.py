"""What is compared: a name of this project with any overrides, a shipped recipe, a trained run, or another library's.

    aim_vit_b16_clip, open_clip:ViT-H-14                 a name of ``aim-fast models``, or any that create_model takes
    aim_vit_b16_clip,adapters=[spatial],num_frames=16    with overrides of ``create_model``
    aim_vit_b16_clip,tune=all                            everything trained: full fine-tuning
    ssv2_b16_8f                                          a shipped recipe
    runs/ssv2                                            a run or a checkpoint of one: its structure, and its top-1
    ssv2.onnx                                            a run's export: its forward pass alone
    torchvision:mvit_v2_s, transformers:timesformer      see :mod:`aim_fast.models.libraries`

Names of this project can be crossed with methods and heads: each is then as many contenders as there are combinations.

A contender is known before it is built, so that counting costs neither memory nor a trunk's weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from aim_fast.errors import UsageError, nearest
from aim_fast.models.combinations import Refusal, combinations
from aim_fast.models.identity import Identity
from aim_fast.models.libraries import NETWORKS, is_library
from aim_fast.models.library_results import published_by_library
from aim_fast.models.published import dataset_arguments, datasets, find_published
from aim_fast.models.registry import MODELS, argument_names, create_model, find_entry, list_trunks
from aim_fast.models.video_model import VideoModel
from aim_fast.models.words import named, written
from aim_fast.training.checkpoint import find_checkpoint, read_checkpoint
from aim_fast.training.exports.description import Description
from aim_fast.training.exports.opening import check_code, open_model, read_exported
from aim_fast.training.metrics import METRICS, read_metrics
from aim_fast.training.recipe_file import load_recipe, shipped_recipes
from aim_fast.training.recipe_model import model_options
from aim_fast.training.run_folder import saved_recipe


@dataclass(frozen=True)
class Contender:
    """One row of a comparison.

    ``label`` as typed; ``identity`` for ``create_model``; ``published`` what was published for this structure, with its
    ``dataset``; ``top1`` percent that a run reached, on the clips that ``scored`` names. ``stored``: what of its frozen
    trunk is stored, see ``VideoModel.store_layers``: it runs on that instead of clips.
    """

    label: str
    identity: Identity
    published: dict[str, Any] = field(default_factory=dict)
    top1: float | None = None
    scored: str | None = None
    stored: Literal["lower", "all"] | None = None
    export: Description | None = None
    run_code: bool = False  # whether an export may hold machine code

    def check_code(self) -> None:
        """Raises CheckpointError for an export of machine code that was not allowed."""
        if self.export is not None:
            check_code(Path(self.label), self.export, self.run_code)

    def open_export(self, device: torch.device) -> VideoModel:
        """The model of the exported file."""
        assert self.export is not None
        return open_model(Path(self.label), self.export, device, self.run_code)

    def build(self) -> VideoModel:
        """The model with random values, on the current default device."""
        model = create_model(self.identity.model, **self.identity.options)
        unnamed = model.takes_class_names and not model.class_names
        if unnamed and not next(model.parameters()).is_meta:
            model.set_classes([f"action {number}" for number in range(model.num_classes)])
        if self.stored:
            model.store_layers(self.stored)
        return model

    def build_without_memory(self) -> VideoModel:
        """The model on the meta device: to count with."""
        with torch.device("meta"):
            return self.build()


@dataclass(frozen=True)
class Asked:
    """Whose heads and adapters are compared; frames and classes for whatever does not say its own."""

    dataset: str
    frames: int | None = None
    num_classes: int | None = None
    run_code: bool = False  # of exports that hold machine code


def find_contenders(
    words: Sequence[str], methods: Sequence[str], heads: Sequence[str], asked: Asked
) -> tuple[list[Contender], list[str]]:
    """What the words stand for, each model's name under all ``methods`` and ``heads`` that it does not say itself.

    The second list has a line for each combination that cannot be, saying why. Runs, recipes and other libraries'
    models stay as they are. Raises UsageError as :func:`find_contender` does, and where no combination can be.
    """
    found: list[Contender] = []
    refused: list[str] = []
    for text in words:
        name, overrides = named(text)
        if not _is_model(name) or is_library(name) or not (methods or heads):
            found.append(find_contender(text, asked))
            continue
        there, missing = combinations(
            name,
            [overrides["method"]] if "method" in overrides else methods,
            [overrides["head"]] if "head" in overrides else heads,
        )
        fitting, odd = _that_take(name, there, overrides)
        refused += [f"{written(text, _less(parts, overrides))}: {reason}" for parts, reason in (*missing, *odd)]
        found += [find_contender(written(text, _less(parts, overrides)), asked) for parts in fitting]
    if not found:
        raise UsageError(refused[0])
    return found, refused


def _that_take(
    name: str, there: Sequence[dict[str, str]], overrides: dict[str, Any]
) -> tuple[list[dict[str, str]], list[Refusal]]:
    """Of combinations of a name those that take all ``overrides``, and the others; all, where none takes them."""
    fitting, refused = [], []
    for parts in there:
        taken = {"method", "head", *argument_names(name, parts.get("head"), parts.get("method"))}
        if odd := [key for key in overrides if key not in taken]:
            refused.append(Refusal(parts, f"it has no {', '.join(odd)}"))
        else:
            fitting.append(parts)
    return (fitting, refused) if fitting else (list(there), [])  # of a wrong word, which making the model says


def _less(parts: dict[str, str], overrides: dict[str, Any]) -> dict[str, str]:
    return {key: word for key, word in parts.items() if key not in overrides}


def _is_model(name: str) -> bool:
    """Whether a word names a model, rather than a recipe or a run."""
    return name in MODELS or name in list_trunks() or bool(re.match(r"\w+:", name))


def find_contender(text: str, asked: Asked) -> Contender:
    """The contender that a word of the command line stands for.

    Raises UsageError for a word that stands for nothing, CheckpointError for a folder without a run.
    """
    name, overrides = named(text)
    if _is_model(name):
        return _of_model(text, name, overrides, asked)
    if overrides and (name in shipped_recipes() or Path(name).exists()):
        raise UsageError(f"{text}: a run or recipe says itself what its model is: leave out {', '.join(overrides)}")
    if name in shipped_recipes():
        return _of_recipe(name, asked)
    if Path(name).exists():
        if export := read_exported(Path(name)):
            return Contender(name, Identity(export.model, export.options), export=export, run_code=asked.run_code)
        return _of_run(name)
    if "/" in name:
        raise UsageError(f"{name} does not exist; give the --output folder of a training run")
    near = nearest(name, [*MODELS, *NETWORKS, *shipped_recipes()])
    hint = near if near.startswith("did") else "`aim-fast models` lists models, `aim-fast compare --help` what else"
    raise UsageError(f"{name!r} is no model, recipe or run: {hint}")


def _of_model(label: str, name: str, overrides: dict[str, Any], asked: Asked) -> Contender:
    entry = find_entry(name, overrides.get("head"), overrides.get("method"))
    taken = argument_names(name, overrides.get("head"), overrides.get("method"))
    takes_frames = getattr(entry.record, "takes_frames", lambda frames: True)
    frames = asked.frames if asked.frames and takes_frames(asked.frames) else None
    sizes = {"num_frames": frames, "num_classes": asked.num_classes}
    common = {key: value for key, value in sizes.items() if value is not None and key in taken}
    arguments = dataset_arguments(name, asked.dataset, taken) | common | overrides
    found = published_by_library(name, asked.dataset, arguments)
    published = {**found, "dataset": asked.dataset} if found else _published(name, asked.dataset, arguments)
    return Contender(label, Identity(name, arguments), published)


def _of_recipe(name: str, asked: Asked) -> Contender:
    recipe = load_recipe(name, {})
    dataset = recipe.data.dataset if recipe.data.dataset in datasets() else asked.dataset
    arguments = model_options(recipe, asked.num_classes or dataset_classes(dataset))
    return Contender(name, Identity(recipe.model.model, arguments), _published(recipe.model.model, dataset, arguments))


def _of_run(text: str) -> Contender:
    recipe, identity = saved_recipe(text), read_checkpoint(find_checkpoint(text)).identity
    published = {}
    if recipe and recipe.data.dataset in datasets():
        published = _published(identity.model, recipe.data.dataset, identity.options)
    scores = [row for row in _metrics(Path(text)) if row.get("kind") == "eval" and "top1" in row]
    best = max(scores, key=lambda row: row["top1"], default=None)
    return Contender(
        text,
        identity,
        published,
        round(100 * best["top1"], 2) if best else None,
        f"{best['videos']} validation videos, 1x1 views" if best and "videos" in best else None,
    )


def _published(model: str, dataset: str, arguments: dict[str, Any]) -> dict[str, Any]:
    found = find_published(model, dataset, arguments)
    return {**found.figures, "dataset": dataset} if found else {}


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Metrics of the run that a path (the run, or a checkpoint in it) belongs to."""
    for folder in (path, *path.absolute().parents[:3]):
        if (folder / METRICS).is_file():
            return read_metrics(folder)
    return []


def dataset_classes(dataset: str) -> int:
    """Classes of a data set that is known by name. Raises UsageError for another."""
    return dataset_arguments("aim_vit_b16_clip", dataset)["num_classes"]
