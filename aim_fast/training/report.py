"""Evaluation of a run, and its report: scores, protocol, a line a class, and a confusion matrix."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aim_fast.data import ClipLoader, read_dataset
from aim_fast.data.features.loader import FeatureLoader
from aim_fast.data.index.selection import choose_classes
from aim_fast.errors import DataError, UsageError
from aim_fast.files import write_whole
from aim_fast.training.checkpoint import find_checkpoint
from aim_fast.training.clips import feature_source, open_features, open_loader, open_split, sampling_of
from aim_fast.training.devices import join_processes
from aim_fast.training.evaluation import Evaluation, draw_confusion, evaluate
from aim_fast.training.progress import RunProgress
from aim_fast.training.recipe_groups import parse_views
from aim_fast.training.run import open_run
from aim_fast.training.run_folder import absolute_paths, saved_recipe
from aim_fast.training.trained_model import TrainedModel


@dataclass(frozen=True)
class Report:
    """Scores of one run on one split."""

    run: Path
    protocol: str
    classes: list[str]
    scores: Evaluation

    def rows(self) -> list[dict[str, Any]]:
        """One row a class: name, videos, top-1 (None without videos)."""
        counts = self.scores.confusion.sum(1).tolist()
        accuracy = self.scores.class_accuracy.tolist()
        return [
            {"class": name, "videos": count, "top1": value if count else None}
            for name, count, value in zip(self.classes, counts, accuracy)
        ]

    def to_dict(self) -> dict[str, Any]:
        return {"protocol": self.protocol, **self.scores.summary(), "classes": self.rows()}

    def text(self) -> str:
        summary = self.scores.summary()
        width = max(len(name) for name in self.classes)
        lines = [f"{'class':<{width}}  videos   top-1"]
        for row in self.rows():
            accuracy = f"{100 * row['top1']:6.1f} %" if row["videos"] else "      –"
            lines.append(f"{row['class']:<{width}}  {row['videos']:>6}  {accuracy}")
        lines += [
            f"protocol: {self.protocol}",
            f"top-1 {100 * summary['top1']:.2f} %, top-5 {100 * summary['top5']:.2f} %, mean class "
            f"{100 * summary['mean_class']:.2f} %, loss {summary['loss']:.4f}, {summary['videos']} videos"
            + (f" ({summary['excluded']} that cannot be decoded are left out)" if summary["excluded"] else ""),
        ]
        return "\n".join(lines)

    def default_confusion(self, json_file: str | None) -> Path:
        """Where the confusion matrix goes when nobody said: beside the JSON file, else into the run's folder."""
        if json_file and json_file != "-":
            return Path(json_file).with_suffix(".confusion.png")
        return (self.run if self.run.is_dir() else self.run.parent) / "confusion.png"

    def draw(self, path: Path) -> None:
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


def evaluate_run(path: str, split: str, fields: dict[str, Any]) -> Report | None:
    """Scores the run at ``path``, with recipe fields typed on the command line; None in all but the first process.

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
        listed = read_dataset(dataset, Path(root), split).classes
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
        if any(row.label < 0 for row in index.rows):
            raise DataError(f"{root}: its {split} split has no labels to score against; use --split validation")
        loader: ClipLoader | FeatureLoader
        if recipe.data.features:
            loader = open_features(recipe, place, index, False, feature_source(replace(run, recipe=recipe)))
            views = f"{loader.store.views} stored views"
        else:
            loader = open_loader(recipe, place, index, run.model.img_size, sampling_of(recipe), None, progress)
            clips, crops = parse_views(recipe.evaluation.views)
            views = f"{clips} clips x {crops} crops"
        count = progress.counter(f"{split}, {views}", loader.clips_per_epoch)
        scores = evaluate(run.model, loader, len(classes), place.device, place.autocast, count)
        progress.close()
        loader.close()
        if not place.first:
            return None
        frames = f"{recipe.data.frames} frames " + (
            f"at interval {recipe.data.interval}" if recipe.data.interval else "spread over the video"
        )
        if recipe.evaluation.random_views and not recipe.data.features:
            frames += ", drawn at random"
        if (share := fields.get("wise_ft")) is not None:
            frames += f", weights {share:g} adapted + {1 - share:g} frozen"
        protocol = (
            f"{dataset} {split}, {views} of {run.model.img_size} px, {frames}, "
            f"softmax averaged over views, {str(place.dtype).removeprefix('torch.')}"
        )
        return Report(Path(path), protocol, classes, scores)
