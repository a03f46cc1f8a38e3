"""A study: several runs of one recipe, each with something changed, as one job that can be stopped and gone on with.

Every (cell, seed) is a run's folder of its own below the study's. ``study.json`` holds the recipe, and the result of
each run that is finished: a run that stands there is not repeated, one that was interrupted goes on from its
checkpoint. A run that fails is named with its reason and begun again by the next call; the others go on. After each run
``table.txt``, ``table.csv``, ``table.json``, ``table.md`` and ``table.png`` hold what is known.

A cell's score is that of its last epoch on the validation split, by the recipe's views: choosing an epoch by that score
would favour the cells with more epochs to choose from.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from aim_fast.errors import AimFastError, CheckpointError, UsageError
from aim_fast.files import write_whole
from aim_fast.models.counting.flops import multiply_adds
from aim_fast.models.registry import create_model
from aim_fast.studies.cells import PUBLISHED_ON, Cell
from aim_fast.studies.method_cells import with_epochs
from aim_fast.studies.spending import spending_of, steady_speed
from aim_fast.studies.study_plot import draw_study
from aim_fast.studies.study_table import CellResult, Row, as_csv, as_markdown, as_text, row_of
from aim_fast.training.checkpoint import find_checkpoint, read_checkpoint
from aim_fast.training.clips import data_classes
from aim_fast.training.drawing import drawing
from aim_fast.training.loop import Result, train
from aim_fast.training.metrics import read_metrics
from aim_fast.training.recipe import Recipe, recipe_differences
from aim_fast.training.recipe_file import load_recipe, recipe_of
from aim_fast.training.report import evaluate_run
from aim_fast.training.run_folder import RECIPE, absolute_paths

STUDY = "study.json"
_MEASURED_STEPS = 30


class Study:
    """The runs of one study below ``folder``: each of ``cells`` with each of ``seeds``.

    With ``hours`` a cell has as many epochs as take about so long, measured before its first run. Raises UsageError and
    CheckpointError before any work: a recipe that cannot be, a folder that holds another study.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        folder: Path,
        seeds: Sequence[int],
        cells: Sequence[Cell],
        hours: float | None = None,
    ) -> None:
        if recipe.data.multi_label:
            raise UsageError(
                "a study compares top-1, which clips of several labels have none of: leave multi_label out"
            )
        self.name, self.folder, self.hours = name, folder, hours
        self.recipe = absolute_paths(recipe.replace(output=None))
        self.seeds, self.cells = tuple(seeds), tuple(cells)
        self.results: dict[tuple[str, int], CellResult] = {}
        self.failures: dict[tuple[str, int], str] = {}
        self.epochs: dict[str, int] = {}  # of each cell, where hours were asked
        self.runs = [(cell, seed, self._recipe_of(cell, seed)) for cell in self.cells for seed in self.seeds]
        self._read()

    def run(self, say: Callable[[str], None], quiet: bool = False) -> bool:
        """Trains what is not finished; False when SIGTERM stopped it, to go on with the same call.

        Raises what is wrong with the data set before anything is trained; what else goes wrong in a run is one of
        ``failures``.
        """
        data_classes(self.recipe)
        self.folder.mkdir(parents=True, exist_ok=True)
        waiting = [run for run in self.runs if (run[0].key, run[1]) not in self.results]
        if len(waiting) < len(self.runs):
            say(f"{len(self.runs) - len(waiting)} of {len(self.runs)} runs are finished and not repeated")
        for number, (cell, seed, recipe) in enumerate(waiting, 1):
            say(f"{number}/{len(waiting)} {cell.title}, seed {seed}: {recipe.run.output}")
            try:
                finished = self._train(cell, seed, recipe, say, quiet)
            except Exception as error:  # of any kind: what is wrong with one model does not end the others' job
                self.failures[cell.key, seed] = self._reason(error, Path(str(recipe.run.output)).name)
                say(f"    failed: {self.failures[cell.key, seed]}")
            else:
                if finished is None:
                    return False
                self.results[cell.key, seed] = finished
                say(f"    top-1 {100 * finished.top1:.1f} %")
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # of which the next run's peak would have its part
            self._write()
        return True

    def rows(self) -> list[Row]:
        """The table's lines, in the order of the study."""
        return [row_of(cell, self._of(cell, self.results), self._of(cell, self.failures)) for cell in self.cells]

    def text(self) -> str:
        """The table as printed, with what it was measured on."""
        return "\n".join([as_text(self.rows(), self._methods), *self._foot()])

    def files(self) -> dict[str, str]:
        """The table in each form that it is written in, by file name."""
        rows = self.rows()
        table = {"study": self.name, "published_on": PUBLISHED_ON[self.name], "rows": [asdict(row) for row in rows]}
        return {
            "table.json": json.dumps(table, indent=1) + "\n",
            "table.csv": as_csv(rows),
            "table.txt": self.text() + "\n",
            "table.md": "\n\n".join([as_markdown(rows, self._methods), *self._foot()]) + "\n",
        }

    @property
    def _methods(self) -> bool:
        """Whether each row has a recipe of its own."""
        return any(cell.recipe for cell in self.cells)

    def _of(self, cell: Cell, found: dict[tuple[str, int], Any]) -> list[Any]:
        return [found[cell.key, seed] for seed in self.seeds if (cell.key, seed) in found]

    def _foot(self) -> list[str]:
        recipe = self.recipe
        length, views = f"last epoch of {recipe.optimisation.epochs}", f", {recipe.evaluation.views} views"
        if self._methods:
            length, views = "last epoch, by each recipe's views", ""
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        model = f"{recipe.model.model}, {recipe.data.frames} frames"
        return [
            f"{recipe.data.dataset} validation{views}, {length}; {model}; {seeds}",
            f"published: {PUBLISHED_ON[self.name]}",
        ]

    def _recipe_of(self, cell: Cell, seed: int) -> Recipe:
        name = cell.key if len(self.seeds) == 1 else f"{cell.key}-seed{seed}"
        return self.recipe.replace(**cell.changes, seed=seed, output=str((self.folder / name).absolute()))

    def _train(
        self, cell: Cell, seed: int, recipe: Recipe, say: Callable[[str], None], quiet: bool
    ) -> CellResult | None:
        """One run from where it stands to its end, and its result; None when it was stopped."""
        output = Path(str(recipe.run.output))
        if self.hours is not None:
            if cell.key not in self.epochs:
                if (epochs := self._epochs_in(self.hours, recipe, quiet)) is None:
                    return None
                self.epochs[cell.key] = epochs
                self._write()
            recipe = with_epochs(recipe, self.epochs[cell.key])
            say(f"    {recipe.optimisation.epochs} epochs in {self.hours:g} hours")
        resume = (output / RECIPE).is_file()
        began = time.perf_counter()
        result = train(absolute_paths(recipe), resume=resume, quiet=quiet)
        if result.stopped:
            return None
        seconds = None if resume else time.perf_counter() - began
        return _result(cell.key, seed, recipe, result, seconds)

    def _reason(self, error: Exception, name: str) -> str:
        """Why a run failed, in one line; where that is no error of the user's, its traceback is kept beside the run."""
        if isinstance(error, AimFastError):
            return " ".join(str(error).split())
        file = self.folder / f"{name}-error.txt"
        write_whole(file, traceback.format_exc())
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}; see {file}"

    def _epochs_in(self, hours: float, recipe: Recipe, quiet: bool) -> int | None:
        """The epochs that take so many hours, 1 at least, by some steps that are thrown away; None when stopped."""
        folder = Path(f"{recipe.run.output}-speed")
        shutil.rmtree(folder, ignore_errors=True)
        trial = recipe.replace(output=str(folder), epochs=1, eval_every=0, checkpoint_every=0, log_every=1)
        result = train(absolute_paths(trial), quiet=quiet, until=_MEASURED_STEPS)
        state = read_checkpoint(find_checkpoint(folder, "last"), with_state=True).state or {}
        speed = steady_speed(read_metrics(folder), state["clips_per_step"])
        shutil.rmtree(folder, ignore_errors=True)
        if result.stopped and result.step < _MEASURED_STEPS:
            return None
        if speed is None:
            raise UsageError("an epoch of one step says nothing of its speed: give --budget epochs=N")
        return max(1, int(hours * 3600 * speed / state["clips"]))

    def _read(self) -> None:
        """Takes up the results that ``study.json`` holds. Raises CheckpointError when it is of another study."""
        path = self.folder / STUDY
        if not path.is_file():
            return
        try:
            saved = json.loads(path.read_text())
            results = [CellResult(**row) for row in saved["results"]]
            theirs = recipe_of(saved["recipe"], "recipe")
            hours, epochs = saved.get("hours"), saved.get("epochs", {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); give another --output") from None
        differences = recipe_differences(theirs, self.recipe.replace(seed=theirs.run.seed))
        if saved["study"] != self.name:
            differences.insert(0, f"study: {saved['study']!r} -> {self.name!r}")
        if hours != self.hours:
            differences.append(f"hours: {hours!r} -> {self.hours!r}")
        self.results, self.epochs = {(result.key, result.seed): result for result in results}, epochs
        differences += self._changed_rows() if not differences else []
        if differences:
            raise CheckpointError(
                f"{self.folder}: holds another study ({'; '.join(differences)}): give the same options, or another "
                "--output"
            )

    def _changed_rows(self) -> list[str]:
        """What would be computed differently from the runs that are there, the rows named."""
        found = []
        for cell, _, recipe in self.runs:
            saved = Path(str(recipe.run.output)) / RECIPE
            if saved.is_file():
                asked = with_epochs(recipe, self.epochs[cell.key]) if cell.key in self.epochs else recipe
                odd = recipe_differences(load_recipe(saved, {}), absolute_paths(asked))
                found += [f"{cell.title}: {', '.join(odd)}"] if odd else []
        return found

    def _write(self) -> None:
        if int(os.environ.get("RANK", 0)):  # one process writes for all
            return
        saved = {
            "study": self.name,
            "recipe": self.recipe.model_dump(mode="json"),
            "hours": self.hours,
            "epochs": self.epochs,
            "results": [asdict(result) for result in self.results.values()],
        }
        for name, content in {STUDY: json.dumps(saved, indent=1) + "\n", **self.files()}.items():
            write_whole(self.folder / name, content)
        with drawing(self.folder / "table.png"):
            self.draw(self.folder / "table.png")

    def draw(self, path: Path) -> None:
        """The table as a picture, a PNG."""
        draw_study(
            self.rows(), f"{self.name}: {self.recipe.data.dataset}, {self.recipe.model.model}", path, self._methods
        )


def _result(key: str, seed: int, recipe: Recipe, result: Result, seconds: float | None) -> CellResult:
    """What a finished run reached, by its recipe's views, and what it cost."""
    output, scores = result.folder, result.last
    if recipe.evaluation.views != "1x1":  # validation during training takes one view
        fields = {"device": recipe.run.device, "precision": recipe.run.precision, "workers": recipe.data.workers}
        scores = evaluate_run(str(output / "checkpoints" / "last"), "validation", fields).scores.summary()
    checkpoint = read_checkpoint(find_checkpoint(output, "last"), with_state=True)
    with torch.device("meta"):
        model = create_model(checkpoint.identity.model, **checkpoint.identity.options)
    spent = spending_of(output, (checkpoint.state or {})["clips"])
    return CellResult(
        key,
        seed,
        scores["top1"],
        scores["top5"],
        sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        seconds,
        recipe.optimisation.epochs,
        round(multiply_adds(model) / 1e9, 3),
        **asdict(spent),
    )
