"""``aim-fast find-lr``: a learning rate for a recipe, by one short sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, trunk_option, typed, with_trunk


@click.command("find-lr", cls=RecipeCommand, short_help="Suggest a learning rate, by one short sweep.")
@click.option(
    "--recipe", metavar="NAME|FILE", help="a shipped recipe or a YAML file; chosen by --dataset when not given"
)
@trunk_option
@click.option("--from", "lowest", metavar="X", type=float, default=1e-7, show_default=True, help="first learning rate")
@click.option("--to", "highest", metavar="X", type=float, default=10.0, show_default=True, help="last learning rate")
@click.option(
    "--steps", metavar="N", type=click.IntRange(20), default=100, show_default=True, help="steps of the sweep"
)
@click.option("--quiet", is_flag=True, help="no progress on stderr")
@recipe_options()
def command(
    recipe: str | None, trunk: str | None, lowest: float, highest: float, steps: int, quiet: bool, **options: Any
) -> None:
    """Train some steps at growing learning rates and suggest the one at which the loss falls fastest.

    \b
    aim-fast find-lr --dataset ssv2 --data-root DIR --weights ViT-B-16.pt --output sweep

    Takes what `train` takes, and leaves learning_rate.csv and learning_rate.png in --output. No run is touched.
    """
    from aim_fast.errors import UsageError
    from aim_fast.training.learning_rate_finder import find_learning_rate
    from aim_fast.training.recipe_file import load_recipe
    from aim_fast.training.recipe_model import check_given_fields
    from aim_fast.training.run_folder import absolute_paths, run_folder

    fields = with_trunk(typed(options), trunk)
    if not 0 < lowest < highest:
        raise UsageError(f"--from {lowest:g} --to {highest:g}: give two rates above 0, the smaller first")
    resolved = load_recipe(recipe, fields)
    check_given_fields(recipe, resolved, fields)
    folder = Path(resolved.run.output or "find-lr")
    if run_folder(folder) == folder or folder.is_file():
        raise UsageError(f"{folder}: is a run, which stays as it is; give another --output")
    sweep = find_learning_rate(absolute_paths(resolved), lowest, highest, steps, quiet)
    if sweep is None:  # not the first process
        return
    for path in sweep.write(folder):
        click.echo(path)
    if sweep.suggestion is None:
        click.echo("no learning rate is suggested: the loss falls nowhere; take more --steps, or another range")
    else:
        click.echo(f"suggested: --lr {sweep.suggestion:g}")
