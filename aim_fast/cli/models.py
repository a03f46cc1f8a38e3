"""`aim-fast models`: what there is, how large it is, what a view costs."""

from __future__ import annotations

import json

import click


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--frames", multiple=True, type=click.IntRange(1), help="frames a view; 8, 16 and 32 when not given")
@click.option("--views", default=3, show_default=True, type=click.IntRange(1), help="views a video")
@click.option(
    "--num-tadapter", default=1, show_default=True, type=click.IntRange(1, 2), help="temporal adapters a block"
)
@click.option("--num-classes", default=400, show_default=True, type=click.IntRange(1), help="classes of the head")
def command(as_json: bool, frames: tuple[int, ...], views: int, num_tadapter: int, num_classes: int) -> None:
    """Names, parameters, and multiply-adds of a video in billions (GFLOPs, as the literature counts them)."""
    from aim_fast.models.flops import model_table

    rows = model_table(frames=frames or (8, 16, 32), views=views, num_tadapter=num_tadapter, num_classes=num_classes)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'model':<20}{'frames':>7}{'views':>7}{'parameters':>14}{'trainable':>13}{'GFLOPs':>10}")
    for row in rows:
        click.echo(
            f"{row['name']:<20}{row['frames']:>7}{row['views']:>7}{row['params']:>14,}{row['trainable']:>13,}"
            f"{row['gflops']:>10.1f}"
        )
