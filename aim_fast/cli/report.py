"""``aim-fast report``: one page about a run, to open in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aim_fast.api import EVALUATED, evaluate
from aim_fast.cli.options import RecipeCommand, recipe_options


@click.command("report", cls=RecipeCommand, short_help="Write one page about a run: curves, mistakes, classes.")
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.option("--split", default="validation", show_default=True, help="train, validation or test")
@click.option("--output", metavar="FILE", help="the page; report.html in the run's folder if not given")
@recipe_options(EVALUATED, defaults="run")
def command(run: str, split: str, output: str | None, **options: Any) -> None:
    """Score RUN and write what it gets right and wrong as one HTML page, which needs no network.

    \b
    aim-fast report RUN --views 1x3
    """
    from aim_fast.report import PAGE, write_page
    from aim_fast.training.report import check_writable
    from aim_fast.training.run_folder import run_folder

    page = Path(output) if output else (run_folder(run) or Path(run).parent) / PAGE
    if Path(run).exists():  # what is not there is named when it is opened
        check_writable(page)
    report = evaluate(run, split, **options)
    if not report.first:
        return
    write_page(report, page)
    click.echo(report.text().splitlines()[-1])
    click.echo(f"report: {page}")
