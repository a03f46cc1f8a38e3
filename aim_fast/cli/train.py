"""``aim-fast train``: adapts a frozen image Transformer to a data set of videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, trunk_option, typed, with_trunk


@click.command("train", cls=RecipeCommand)
@click.option(
    "--recipe", metavar="NAME|FILE", help="a shipped recipe or a YAML file; chosen by --dataset when not given"
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="yes",
    type=click.Choice(["yes", "auto"]),
    metavar="[auto]",
    help="go on with the run in --output from its last checkpoint; with auto begin it where there is none",
)
@trunk_option
@click.option("--quiet", is_flag=True, help="no progress on stderr")
@recipe_options()
def command(recipe: str | None, resume: str | None, trunk: str | None, quiet: bool, **options: Any) -> None:
    """Train adapters on a frozen image Transformer.

    \b
    aim-fast train --dataset ssv2 --data-root DIR --weights ViT-B-16.pt --output RUN
    aim-fast train --trunk timm:vit_base_patch16_dinov3.lvd1689m --method aim --head linear --dataset ssv2 …
    aim-fast train --output RUN --resume
    torchrun --nproc-per-node 8 -m aim_fast train ...
    torchrun --nproc-per-node 8 --max-restarts 3 -m aim_fast train ... --resume auto
    """
    from aim_fast.training.recipe_file import load_recipe
    from aim_fast.training.recipe_model import check_model_fields
    from aim_fast.training.run_folder import RECIPE, absolute_paths

    fields = with_trunk(typed(options), trunk)
    output = fields.get("output")
    if resume and recipe is None and output and (Path(output) / RECIPE).is_file():
        resolved = load_recipe(Path(output) / RECIPE, fields)
    else:
        resolved = load_recipe(recipe, fields)
    if resolved.run.output is None:
        data = resolved.data
        head = resolved.model.head if resolved.model.head != "linear" else None
        words = [data.dataset, resolved.model.model.replace("/", "_"), resolved.model.method, head]
        resolved = resolved.replace(output=f"runs/{'-'.join(filter(None, words))}-{data.frames}f")

    from aim_fast.training.loop import train

    check_model_fields(resolved.model.model, fields, resolved.model.head, resolved.model.method)
    # decided before the processes join, and so before the first one can write the file that decides it
    resumes = resume == "yes" or (resume == "auto" and (Path(resolved.run.output or "") / RECIPE).is_file())
    result = train(absolute_paths(resolved), resume=resumes, quiet=quiet)
    if not result.first:  # one process speaks for all
        return
    if result.stopped:
        click.echo(
            f"{result.folder}: stopped by SIGTERM after step {result.step} and saved; "
            f"go on with `aim-fast train --output {result.folder} --resume`"
        )
        return
    last = result.last
    click.echo(
        f"{result.folder}: top-1 {100 * last['top1']:.1f} %, top-5 {100 * last['top5']:.1f} % on "
        f"{last['videos']} videos (best top-1 {100 * result.best_top1:.1f} %)"
    )
