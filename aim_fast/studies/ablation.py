"""A study: several runs of one recipe, each with something changed, as one job that can be stopped and gone on with.

Every (cell, seed) is a run's folder of its own below the study's. ``study.json`` holds the recipe, and the result of
each run that is finished: a run that stands there is not repeated, one that was interrupted goes on from its
checkpoint. At the end, and after each run, ``table.txt``, ``table.csv``, ``table.json`` and ``table.png`` hold what is
known.

A cell's score is that of its last epoch on the validation split, by the recipe's views: choosing an epoch by that score
would favour the cells with more epochs to choose from.
"""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aim_fast.errors import CheckpointError, UsageError
from aim_fast.files import replacing, write_whole
from aim_fast.printable import printable
from aim_fast.studies.cells import PUBLISHED_ON, Cell, cells_of
from aim_fast.training.checkpoint import find_checkpoint, read_checkpoint
from aim_fast.training.drawing import drawing
from aim_fast.training.loop import train
from aim_fast.training.recipe import Recipe, recipe_differences
from aim_fast.training.recipe_file import recipe_of
from aim_fast.training.recipe_model import check_model_fields
from aim_fast.training.report import evaluate_run
from aim_fast.training.run_folder import RECIPE, absolute_paths

STUDY = "study.json"


@dataclass(frozen=True)
class CellResult:
    """One finished run: shares of 1, numbers of trained values, seconds of training (None where it was interrupted)."""

    key: str
    seed: int
    top1: float
    top5: float
    trained: int
    seconds: float | None


@dataclass(frozen=True)
class Row:
    """One line of the table: a cell over its finished seeds; ``top1`` and ``spread``, its deviation, in percent."""

    title: str
    seeds: int
    top1: float | None
    spread: float | None
    trained: int | None
    seconds: float | None
    published: float | None


class Study:
    """The runs of one study below ``folder``.

    Raises UsageError and CheckpointError before any work: a model that lacks what the cells change, a recipe that
    cannot be, a folder that holds another study.
    """

    def __init__(
        self, name: str, recipe: Recipe, folder: Path, seeds: Sequence[int], finetune_lr_factor: float
    ) -> None:
        self.name, self.folder = name, folder
        self.recipe = absolute_paths(recipe.replace(output=None))
        self.seeds = tuple(seeds)
        self.cells = cells_of(name, recipe, finetune_lr_factor)
        for cell in self.cells:
            check_model_fields(cell.changes.get("model", recipe.model.model), cell.changes)
        self.runs = [(cell, seed, self._recipe_of(cell, seed)) for cell in self.cells for seed in self.seeds]
        self.results: dict[tuple[str, int], CellResult] = {}
        self._read()

    def run(self, say: Callable[[str], None], quiet: bool = False) -> bool:
        """Trains what is not finished; False when SIGTERM stopped it, to go on with the same call."""
        waiting = [run for run in self.runs if (run[0].key, run[1]) not in self.results]
        if len(waiting) < len(self.runs):
            say(f"{len(self.runs) - len(waiting)} of {len(self.runs)} runs are finished and not repeated")
        for number, (cell, seed, recipe) in enumerate(waiting, 1):
            output = Path(str(recipe.run.output))
            resume = (output / RECIPE).is_file()
            verb = "going on with" if resume else "training"
            say(f"{number}/{len(waiting)} {cell.title}, seed {seed}: {verb} {output}")
            began = time.perf_counter()
            result = train(recipe, resume=resume, quiet=quiet)
            if result.stopped:
                return False
            seconds = None if resume else time.perf_counter() - began
            scores = result.last
            if recipe.evaluation.views != "1x1":  # validation during training takes one view
                report = evaluate_run(str(output / "checkpoints" / "last"), "validation", _incidental(recipe))
                scores = report.scores.summary() if report else scores
            tensors = read_checkpoint(find_checkpoint(output, "last")).tensors
            trained = sum(tensor.numel() for tensor in tensors.values())
            finished = CellResult(cell.key, seed, scores["top1"], scores["top5"], trained, seconds)
            self.results[cell.key, seed] = finished
            say(f"    top-1 {100 * finished.top1:.1f} %")
            if int(os.environ.get("RANK", 0)) == 0:
                self._write()
        return True

    def rows(self) -> list[Row]:
        """The table's lines, in the order of the study."""
        rows = []
        for cell in self.cells:
            found = [self.results[cell.key, seed] for seed in self.seeds if (cell.key, seed) in self.results]
            top1 = [100 * result.top1 for result in found]
            times = [result.seconds for result in found if result.seconds is not None]
            rows.append(
                Row(
                    cell.title,
                    len(found),
                    round(statistics.mean(top1), 2) if top1 else None,
                    round(statistics.stdev(top1), 2) if len(top1) > 1 else None,
                    found[0].trained if found else None,
                    round(statistics.mean(times), 1) if times else None,
                    cell.published,
                )
            )
        return rows

    def text(self) -> str:
        """The table as printed."""
        lines = [f"{'':<26}{'trained':>13}{'top-1 %':>16}{'seconds':>9}{'published':>11}"]
        for row in self.rows():
            score = "–" if row.top1 is None else f"{row.top1:.1f}" + (f" ± {row.spread:.1f}" if row.spread else "")
            trained = "–" if row.trained is None else f"{row.trained:,}"
            seconds = "–" if row.seconds is None else f"{row.seconds:.0f}"
            published = "–" if row.published is None else f"{row.published:.1f}"
            lines.append(f"{row.title:<26}{trained:>13}{score:>16}{seconds:>9}{published:>11}")
        recipe = self.recipe
        lines += [
            f"{recipe.data.dataset} validation, {recipe.evaluation.views} views, last epoch of "
            f"{recipe.optimisation.epochs}; {recipe.model.model}, {recipe.data.frames} frames; "
            f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}",
            f"published: {PUBLISHED_ON[self.name]}",
        ]
        return "\n".join(lines)

    def _recipe_of(self, cell: Cell, seed: int) -> Recipe:
        name = cell.key if len(self.seeds) == 1 else f"{cell.key}-seed{seed}"
        return self.recipe.replace(**cell.changes, seed=seed, output=str((self.folder / name).absolute()))

    def _read(self) -> None:
        """Takes up the results that ``study.json`` holds. Raises CheckpointError when it is of another study."""
        path = self.folder / STUDY
        if not path.is_file():
            return
        try:
            saved = json.loads(path.read_text())
            results = [CellResult(**row) for row in saved["results"]]
            theirs = recipe_of(saved["recipe"], "recipe")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); give another --output") from None
        differences = recipe_differences(theirs, self.recipe.replace(seed=theirs.run.seed))
        if saved["study"] != self.name:
            differences.insert(0, f"study: {saved['study']!r} -> {self.name!r}")
        if differences:
            raise CheckpointError(
                f"{self.folder}: holds another study ({'; '.join(differences)}): give the same options, or another "
                "--output"
            )
        self.results = {(result.key, result.seed): result for result in results}

    def _write(self) -> None:
        rows = [asdict(row) for row in self.rows()]
        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        saved = {
            "study": self.name,
            "recipe": self.recipe.model_dump(mode="json"),
            "results": [asdict(result) for result in self.results.values()],
        }
        table = {"study": self.name, "published_on": PUBLISHED_ON[self.name], "rows": rows}
        for name, content in (
            (STUDY, json.dumps(saved, indent=1) + "\n"),
            ("table.json", json.dumps(table, indent=1) + "\n"),
            ("table.csv", sheet.getvalue()),
            ("table.txt", self.text() + "\n"),
        ):
            write_whole(self.folder / name, content)
        picture = self.folder / "table.png"
        with drawing(picture):
            draw_study(self.rows(), f"{self.name}: {self.recipe.data.dataset}, {self.recipe.model.model}", picture)


def draw_study(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draws measured top-1 as bars, with published ones as outlines beside them, and writes a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    measured = axes.barh(
        [place - 0.18 for place in places], [row.top1 or 0 for row in rows], height=0.34, color="tab:blue",
        xerr=[row.spread or 0 for row in rows], label="measured",
    )  # fmt: skip
    published = axes.barh(
        [place + 0.2 for place in places], [row.published or 0 for row in rows], height=0.3, fill=False,
        edgecolor="tab:gray", label="published (its own data set)",
    )  # fmt: skip
    axes.bar_label(measured, ["" if row.top1 is None else f"{row.top1:.1f}" for row in rows], padding=3, fontsize=8)
    axes.bar_label(published, ["" if row.published is None else f"{row.published:.1f}" for row in rows], padding=3,
                   fontsize=7, color="tab:gray")  # fmt: skip
    axes.set_yticks(places, [row.title for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="top-1 (%)", xlim=(0, 108))
    axes.set_title(printable(title), fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right", fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _incidental(recipe: Recipe) -> dict[str, Any]:
    return {"device": recipe.run.device, "precision": recipe.run.precision, "workers": recipe.data.workers}
