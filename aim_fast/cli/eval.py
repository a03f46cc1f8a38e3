"""``aim-fast eval``: scores a run or a checkpoint on a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RUN_FIELDS, RecipeCommand, recipe_options, typed
from aim_fast.training.part_groups import UNTOLD

FIELDS = (
    *("dataset", "data_root", "accept_gaps", "views", "weights", "weights_key", "model", *UNTOLD),
    *("frames", "interval", "batch_size", "random_views", "features"),
)


@click.command("eval", cls=RecipeCommand, short_help="Score a run: top-1, top-5, mean-class accuracy, loss.")
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.option("--split", default="validation", show_default=True, help="train, validation or test")
@click.option("--json", "json_file", metavar="FILE", help="write the scores as JSON; FILE - is standard output")
@click.option(
    "--confusion", metavar="PNG", help="file of the confusion matrix; beside the JSON or the run if not given"
)
@click.option(
    "--classes", metavar="seen|unseen|all|FILE", help="classes to score; FILE names them, others need a text head"
)
@click.option("--wise-ft", metavar="X", type=float, help="text head: X of the trained weights + 1 - X of the frozen")
@recipe_options((*FIELDS, *RUN_FIELDS), defaults="run")
def command(run: str, split: str, json_file: str | None, confusion: str | None, **options: Any) -> None:
    """Top-1, top-5, mean-class accuracy and loss of RUN over the views of each video.

    \b
    aim-fast eval RUN --views 1x3 --json scores.json
    """
    from aim_fast.training.drawing import drawing
    from aim_fast.training.report import check_writable, evaluate_run

    for file in (json_file if json_file != "-" else None, confusion):
        if file:
            check_writable(Path(file))
    report = evaluate_run(run, split, typed(options))
    if report is None:  # not the first process
        return
    content = json.dumps(report.to_dict(), indent=2)
    click.echo(content if json_file == "-" else report.text())
    if json_file and json_file != "-":
        report.write(Path(json_file), content)
    destination = Path(confusion) if confusion else report.default_confusion(json_file)
    with drawing(destination):
        report.draw(destination)
        if json_file != "-":
            click.echo(f"confusion matrix: {destination}")
