"""Evaluation of a run, and its report: scores, protocol, a line a class, and a confusion matrix."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import one_hot

from aim_fast.data import ClipLoader, Index, Sampling, read_dataset
from aim_fast.data.features.loader import FeatureLoader
from aim_fast.data.formats import chosen_dataset
from aim_fast.data.index.selection import choose_classes
from aim_fast.errors import DataError, UsageError
from aim_fast.files import write_whole
from aim_fast.training.checkpoint import find_checkpoint
from aim_fast.training.clips import feature_source, open_features, open_loader, open_split, sampling_of
from aim_fast.training.devices import Place, join_processes
from aim_fast.training.evaluation import Evaluation, draw_confusion, evaluate
from aim_fast.training.exports.opening import ExportedModel
from aim_fast.training.multi_label_evaluation import MultiLabelEvaluation
from aim_fast.training.progress import RunProgress
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_groups import parse_views
from aim_fast.training.run import open_run
from aim_fast.training.run_folder import absolute_paths, saved_recipe
from aim_fast.training.trained_model import TrainedModel


@dataclass(frozen=True)
class Report:
    """Scores of one run on one split, of views taken as ``sampling`` says, ``img_size`` pixels a side.

    ``scores``: an :class:`~aim_fast.training.evaluation.Evaluation`; row r of its tensors is the video
    ``index.rows[scores.rows[r]]``. ``first``: of the first process, which speaks for all.
    """

    run: Path
    protocol: str
    classes: list[str]
    scores: Evaluation | MultiLabelEvaluation
    index: Index
    recipe: Recipe
    sampling: Sampling
    img_size: int
    first: bool = True

    def rows(self) -> list[dict[str, Any]]:
        """One row a class: name, videos, top-1 or average precision (None without videos)."""
        return self.scores.class_rows(self.classes)

    @property
    def videos(self) -> list[str]:
        """Paths of the videos that were scored, in the order of the scores."""
        return [self.index.rows[row].path for row in self.scores.rows.tolist()]

    def mistakes(self, most: int) -> list[int]:
        """Places among the scores of the most confident mistakes, the worst first."""
        probabilities = self.scores.probabilities
        confidence = probabilities.masked_fill(self.has, -1).amax(1)  # in a class that the video has not
        right = confidence < 0.5 if self.multi_label else probabilities.argmax(1) == self.scores.labels
        order = confidence.masked_fill(right, -1).argsort(descending=True, stable=True)
        return [place for place in order[:most].tolist() if not right[place]]

    @property
    def has(self) -> Tensor:
        """bool [videos, classes]: which classes a video has."""
        labels = self.scores.labels
        return (labels if self.multi_label else one_hot(labels, len(self.classes))) > 0

    def to_dict(self) -> dict[str, Any]:
        return {"protocol": self.protocol, **self.scores.summary(), "classes": self.rows()}

    def text(self) -> str:
        summary = self.scores.summary()
        width = max(len(name) for name in self.classes)
        lines = [f"{'class':<{width}}  videos  {'    AP' if self.multi_label else ' top-1'}"]
        for name, videos, value in (row.values() for row in self.rows()):
            lines.append(f"{name:<{width}}  {videos:>6}  " + (f"{100 * value:6.1f} %" if videos else "      –"))
        figures = ", ".join(f"{name} {100 * value:.2f} %" for name, value in self.scores.figures.items())
        lines += [
            f"protocol: {self.protocol}",
            f"{figures}, loss {summary['loss']:.4f}, {summary['videos']} videos"
            + (f" ({summary['excluded']} that cannot be decoded are left out)" if summary["excluded"] else ""),
        ]
        return "\n".join(lines)

    @property
    def multi_label(self) -> bool:
        return isinstance(self.scores, MultiLabelEvaluation)

    def default_confusion(self, json_file: str | None) -> Path:
        """Where the confusion matrix goes when nobody said: beside the JSON file, else into the run's folder."""
        if json_file and json_file != "-":
            return Path(json_file).with_suffix(".confusion.png")
        return (self.run if self.run.is_dir() else self.run.parent) / "confusion.png"

    def draw(self, path: Path) -> None:
        """The confusion matrix, of a data set of one label a clip."""
        assert isinstance(self.scores, Evaluation)
        draw_confusion(self.scores, self.classes, path)

    def write(self, path: Path, content: str) -> None:
        try:
            write_whole(path, content + "\n")
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror}); give --json FILE elsewhere") from None


def check_writable(path: Path) -> None:
    """Raises UsageError where a file cannot be written, before hours are spent on what goes into it."""
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: cannot be written; name a file in a folder that is there and yours")


def scored_classes(run: TrainedModel, listed: list[str], wanted: str | None, what: str) -> list[str]:
    """The classes that a run is scored on, of the ``listed`` ones of a data set.

    ``wanted`` is "seen" (trained on), "unseen", "all", or a file of names; without it those that the run was trained on
    where that was a part of them, else all. Raises DataError where the run can score its own classes alone.
    """
    own = set(run.classes)
    if wanted in ("seen", "unseen", "all"):
        chosen = [name for name in listed if wanted == "all" or (name in own) == (wanted == "seen")]
    elif wanted is not None:
        chosen = choose_classes(listed, wanted, run.recipe.run.seed)
    else:
        part = run.recipe.data.classes and own <= set(listed)
        chosen = [name for name in listed if name in own] if part else listed
    if not chosen:
        raise DataError(f"{what} are none of those asked for ({wanted}): all {len(listed)} were trained on, or none")
    if chosen != run.classes and not run.model.takes_class_names:
        odd = sorted(own ^ set(chosen)) or ["the same names in another order"]
        raise DataError(f"{what} are not the {len(own)} that {run.source} was trained on: {', '.join(odd[:5])}")
    return chosen


def evaluate_run(path: str, split: str, fields: dict[str, Any]) -> Report:
    """Scores the run at ``path``, with recipe fields typed on the command line; alike in every process.

    Raises DataError when the data set's classes are not those that the run was trained on.
    """
    if "views" in fields:
        parse_views(fields["views"])
    if not Path(path).is_file():
        find_checkpoint(path)
    saved = saved_recipe(path)
    with join_processes(fields.get("device", "auto"), fields.get("precision", "auto")) as place:
        progress = RunProgress(not place.first)
        dataset, root = (fields.get(name) or (saved and getattr(saved.data, name)) for name in ("dataset", "data_root"))
        if not dataset or not root:
            raise UsageError(f"{path} names no data set: give --dataset NAME and --data-root DIR")
        several = fields.get("multi_label", saved.data.multi_label if saved else False)
        if saved and several != saved.data.multi_label:
            raise UsageError(f"{path} was trained {'without' if several else 'with'} multi_label: leave it out")
        listed = read_dataset(*chosen_dataset(dataset, root), split, several).classes
        wanted = fields.get("classes")
        fields = {name: value for name, value in fields.items() if name != "classes"}
        run = open_run(path, fields, place, listed)
        chosen = {"dataset": dataset, "data_root": str(root), "features": fields.get("features")}
        recipe = absolute_paths(run.recipe.replace(**chosen, classes=None, shots=0, shot_list=None))
        classes = scored_classes(run, listed, wanted, f"{root}: its classes")
        if classes != run.classes:
            run.model.set_classes(classes)
        for line in run.lines:
            progress.say(line)
        if run.classes and (unseen := len(set(classes) - set(run.classes))):
            progress.say(f"zero-shot: {unseen} of {len(classes)} classes were not trained on")
        index = open_split(recipe, split, place, progress, classes)
        unlabelled = sum(row.label < 0 for row in index.rows)
        if unlabelled == len(index) or (unlabelled and not recipe.data.multi_label):
            raise DataError(f"{root}: its {split} split has no labels to score against; use --split validation")
        loader: ClipLoader | FeatureLoader
        sampling = sampling_of(recipe)
        if recipe.data.features:
            loader = open_features(recipe, place, index, False, feature_source(replace(run, recipe=recipe)))
            views = f"{loader.store.views} stored views"
        else:
            loader = open_loader(recipe, place, index, run.model.img_size, sampling, None, progress)
            views = f"{sampling.clips} clips x {sampling.crops} crops"
        count = progress.counter(f"{split}, {views}", loader.clips_per_epoch)
        scores = evaluate(run.model, loader, len(classes), place.device, place.autocast, count)
        progress.close()
        loader.close()
        drawn = ", drawn at random" if recipe.evaluation.random_views and not recipe.data.features else ""
        if (share := fields.get("wise_ft")) is not None:
            drawn += f", weights {share:g} adapted + {1 - share:g} frozen"
        if isinstance(run.model, ExportedModel):
            drawn += f", exported as {run.model.description.format} in {run.model.description.precision}"
        said = protocol(recipe, split, f"{views} of {run.model.img_size} px", place, drawn)
        return Report(Path(path), said, classes, scores, index, recipe, sampling, run.model.img_size, place.first)


def protocol(recipe: Recipe, split: str, views: str, place: Place, besides: str = "") -> str:
    """How scores came about, in one line: data set, split, ``views``, frames and what is said ``besides``, dtype."""
    interval = recipe.data.interval
    frames = f"{recipe.data.frames} frames " + (f"at interval {interval}" if interval else "spread over the video")
    scores = "sigmoid" if recipe.data.multi_label else "softmax"
    return f"{recipe.data.dataset} {split}, {views}, {frames}{besides}, {scores} averaged over views, {place.precision}"
