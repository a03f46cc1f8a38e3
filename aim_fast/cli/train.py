"""``aim-fast train``: adapts a frozen image Transformer to a data set of videos."""

from __future__ import annotations

from typing import Any, Literal

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, trunk_option


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
def command(
    recipe: str | None, resume: Literal["yes", "auto"] | None, trunk: str | None, quiet: bool, **options: Any
) -> None:
    """Train adapters on a frozen image Transformer.

    \b
    aim-fast train --dataset ssv2 --data-root DIR --weights ViT-B-16.pt --output RUN
    aim-fast train --trunk timm:vit_base_patch16_dinov3.lvd1689m --method aim --head linear --dataset ssv2 …
    aim-fast train --output RUN --resume
    torchrun --nproc-per-node 8 -m aim_fast train ...
    torchrun --nproc-per-node 8 --max-restarts 3 -m aim_fast train ... --resume auto
    """
    from aim_fast.api import train

    result = train(recipe, resume=resume, trunk=trunk, quiet=quiet, **options)
    if not result.first:  # one process speaks for all
        return
    if result.stopped:
        click.echo(
            f"{result.folder}: stopped by {result.cause} after step {result.step} and saved; "
            f"go on with `aim-fast train --output {result.folder} --resume`"
        )
        return
    last, best = result.last, 100 * result.best_top1
    if "map" in last:
        scores, best_of = f"mAP {100 * last['map']:.1f} %", "mAP"
    else:
        scores, best_of = f"top-1 {100 * last['top1']:.1f} %, top-5 {100 * last['top5']:.1f} %", "top-1"
    click.echo(f"{result.folder}: {scores} on {last['videos']} videos (best {best_of} {best:.1f} %)")
