"""``aim-fast tune``: checks and times the kernels of a training step on this card, and keeps the fastest right ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed
from aim_fast.errors import UsageError

FIELDS = (
    *("model", "method", "head", "activation", "adapters", "num_tadapter", "adapter_ratio", "adapter_layers", "tune"),
    *("drop_path", "frames", "img_size", "batch_size", "memory", "device", "precision"),
)


@click.command("tune", cls=RecipeCommand, short_help="Choose the fastest right kernels for this card.")
@click.option("--recipe", metavar="NAME|FILE", help="a shipped recipe or a YAML file; chosen by --model when not given")
@click.option("--trunk", metavar="NAME", help="a trunk, in place of --model: vit_b16_clip, timm:NAME, open_clip:NAME …")
@click.option("--anew", is_flag=True, help="measure what the card's record holds too")
@click.option("--json", "file", type=click.Path(path_type=Path), metavar="FILE", help="write all candidates' figures")
@recipe_options(FIELDS)
def command(recipe: str | None, trunk: str | None, anew: bool, file: Path | None, **options: Any) -> None:
    """Check and time every kernel of a training step on this card; keep the fastest that are right.

    `train` does the same before its first step; the record is in ~/.cache/aim-fast/tuning (XDG_CACHE_HOME).

    \b
    aim-fast tune --model aim_vit_b16_clip --frames 8 --batch-size 32
    aim-fast tune --trunk timm:vit_base_patch16_dinov3.lvd1689m --method aim --frames 8 --json kernels.json
    """
    from aim_fast.files import write_whole
    from aim_fast.studies.kernel_choice import figures, table, tune_recipe
    from aim_fast.training.recipe_file import load_recipe

    fields = typed(options)
    if trunk:
        if "model" in fields:
            raise UsageError("--trunk and --model both name what is trained: keep one")
        fields["model"] = trunk
    tuning = tune_recipe(load_recipe(recipe, fields), anew)
    if file:
        write_whole(file, json.dumps(figures(tuning), indent=1) + "\n")
    click.echo(table(tuning))
    for line in (*tuning.lines, tuning.summary):
        click.echo(line)
