"""``aim-fast eval``: scores a run or a checkpoint on a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from aim_fast.api import EVALUATED, evaluate
from aim_fast.cli.options import RecipeCommand, recipe_options, run_code_option
from aim_fast.errors import UsageError


@click.command("eval", cls=RecipeCommand, short_help="Score a run: top-1, top-5, mean-class accuracy or mAP, loss.")
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.option("--split", default="validation", show_default=True, help="train, validation or test")
@click.option("--json", "json_file", metavar="FILE", help="write the scores as JSON; FILE - is standard output")
@click.option(
    "--confusion", metavar="PNG", help="file of the confusion matrix; beside the JSON or the run if not given"
)
@click.option("--predictions", metavar="FILE", help="write every video's scores, as .csv or .parquet")
@click.option(
    "--classes", metavar="seen|unseen|all|FILE", help="classes to score; FILE names them, others need a text head"
)
@click.option("--wise-ft", metavar="X", type=float, help="text head: X of the trained weights + 1 - X of the frozen")
@run_code_option
@recipe_options(EVALUATED, defaults="run")
def command(
    run: str, split: str, json_file: str | None, confusion: str | None, predictions: str | None, **options: Any
) -> None:
    """Top-1, top-5, mean-class accuracy and loss of RUN or its export, or mAP and loss, over the views of each video.

    \b
    aim-fast eval RUN --views 1x3 --json scores.json
    """
    from aim_fast.report.predictions import check_predictions, write_predictions
    from aim_fast.training.drawing import drawing
    from aim_fast.training.report import check_writable
    from aim_fast.training.run_folder import saved_recipe

    for file in (json_file if json_file != "-" else None, confusion, predictions):
        if file:
            check_writable(Path(file))
    if predictions:
        check_predictions(Path(predictions))
    if confusion and (options["multi_label"] or ((saved := saved_recipe(run)) and saved.data.multi_label)):
        raise UsageError("--confusion: where clips may have several labels there is no confusion matrix: leave it out")
    report = evaluate(run, split, **options)
    if not report.first:  # one process speaks for all
        return
    content = json.dumps(report.to_dict(), indent=2)
    click.echo(content if json_file == "-" else report.text())
    if json_file and json_file != "-":
        report.write(Path(json_file), content)
    if predictions:
        write_predictions(report, Path(predictions))
    if report.multi_label:
        return
    destination = Path(confusion) if confusion else report.default_confusion(json_file)
    with drawing(destination):
        report.draw(destination)
        if json_file != "-":
            click.echo(f"confusion matrix: {destination}")
