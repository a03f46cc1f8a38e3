"""``compare --train``, and what ``ablate`` shares with it: seeds, the demo's clips and trunk, a run of a study."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aim_fast.cli.options import typed, words_of

if TYPE_CHECKING:
    from aim_fast.studies.ablation import Study
    from aim_fast.training.progress import RunProgress
    from aim_fast.training.recipe import Recipe

# Recipe fields that a study's cells set themselves, or the study does.
OWN = ("output", "seed", "features", "cache_features", "cache_dtype", "cache_layers")
SCENE_BIAS = 0.4


def train_rows(
    words: Sequence[str],
    trunks: Sequence[str],
    options: dict[str, Any],
    quiet: bool,
    as_json: bool,
    csv_file: str | None,
    plot: str | None,
) -> int:
    """``compare --train``: methods on one trunk, and models beside them.

    ``options``: recipe fields, and ``output, budget, seeds, recipe, demo``; after seeds a whole number among ``words``
    is one too.
    """
    from aim_fast.errors import UsageError
    from aim_fast.files import write_whole
    from aim_fast.studies.method_cells import Budget, method_cells
    from aim_fast.studies.row_weights import check_row_weights
    from aim_fast.training.drawing import drawing
    from aim_fast.training.progress import RunProgress
    from aim_fast.training.report import check_writable

    fields, progress = typed(options), RunProgress(quiet)
    output, recipe, demo = fields.pop("output", None), fields.pop("recipe", None), fields.pop("demo")
    budget, seeds = Budget.of(fields.pop("budget", "published")), fields.pop("seeds", None)
    rows = [word for word in words if not (seeds and word.isdecimal())]
    named = [*words_of(trunks), *([fields["model"]] if "model" in fields else [])]
    if len(named) > 1:
        raise UsageError(f"--train puts all methods on one trunk, not on {', '.join(named)}: keep one")
    if not rows:
        raise click.MissingParameter(param_type="argument", param_hint="'MODEL...', methods such as aim probe lora")
    if (budget.epochs or budget.hours) and "epochs" in fields:
        raise UsageError("--budget and --epochs both say how long is trained: keep one")
    for file in filter(None, (csv_file, plot)):
        check_writable(Path(file))
    folder = Path(output or f"runs/compare-{'demo' if demo else fields.get('dataset', 'own')}")
    if demo:
        fields, recipe = demo_fields(fields, folder), recipe or "demo_ablation"
    elif not (fields.get("dataset") or recipe):
        raise UsageError("--train needs --dataset and --data-root, or --demo")
    fields |= {"model": named[0]} if named else {}
    chosen = seeds_of(",".join([seeds, *(word for word in words if word not in rows)]) if seeds else None, 0)
    base, cells = method_cells(rows, fields, recipe, budget, progress.say)
    if not demo:
        check_row_weights(base, cells, progress.say)

    from aim_fast.studies.ablation import Study
    from aim_fast.studies.cells import METHODS

    work = Study(METHODS, base, folder, chosen, cells, budget.hours)
    if demo:
        make_demo(folder / "demo", base, progress)
    status = run_study(work, progress, quiet, as_json)
    if csv_file:
        write_whole(Path(csv_file), work.files()["table.csv"])
    if plot:
        with drawing(Path(plot)):
            work.draw(Path(plot))
    return status


def refuse(options: Mapping[str, Any], reason: str) -> None:
    """Raises UsageError with the reason for the options that were typed, if any was."""
    from aim_fast.errors import UsageError

    if odd := ["--" + name.replace("_", "-") for name, value in options.items() if value not in (None, False, ())]:
        raise UsageError(f"{', '.join(sorted(odd))} {reason}")


def seeds_of(text: str | None, default: int) -> list[int]:
    """The seeds of ``0,1,2``. Raises UsageError for what are not different whole numbers."""
    from aim_fast.errors import UsageError

    if text is None:
        return [default]
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) != len(words):
        raise UsageError(f"--seeds {text!r} are not different whole numbers: write for example 0,1,2")
    return [int(word) for word in words]


def demo_fields(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields with the demo's clips and trunk below ``folder``. Raises UsageError where others were typed."""
    from aim_fast.errors import UsageError

    if named := [name for name in ("dataset", "data_root", "weights") if name in fields]:
        raise UsageError(f"--demo makes its own data and trunk: leave --{named[0].replace('_', '-')} out")
    made = {"data_root": str(folder / "demo" / "data"), "weights": str(folder / "demo" / "trunk.safetensors")}
    return fields | made


def make_demo(folder: Path, recipe: Recipe, progress: RunProgress) -> None:
    """Makes the demo's clips and trunk once; what an interrupted study left half made is made again."""
    from aim_fast.demo.demo_set import DATA, TRUNK, make_clips, make_trunk
    from aim_fast.errors import UsageError
    from aim_fast.training.devices import join_processes

    if (folder / TRUNK).exists():
        return
    shutil.rmtree(folder / DATA, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}); give another --output") from None
    progress.say(f"writing clips of moving objects to {folder / DATA}, and training an image Transformer on still ones")
    make_clips(folder, 1280, 0, progress, SCENE_BIAS)
    with join_processes(recipe.run.device, recipe.run.precision) as place:
        make_trunk(folder, recipe.model.model, place, 8000, 1000, 0, progress)


def run_study(work: Study, progress: RunProgress, quiet: bool, as_json: bool = False) -> int:
    """Trains what a study still lacks and prints its table; the command's status, 1 where a run has failed."""
    folder = work.folder
    if not work.run(progress.say, quiet):
        click.echo(f"{folder}: stopped by SIGTERM and saved; the same command goes on with it")
        return 0
    click.echo(work.files()["table.json"].rstrip() if as_json else work.text())
    click.echo(f"{folder}: table.txt, table.csv, table.json, table.md, table.png", err=as_json)
    if work.failures:
        names = ", ".join(dict.fromkeys(key for key, _ in work.failures))
        click.echo(f"{folder}: {names} failed; the same command begins them again", err=True)
    return int(bool(work.failures))
