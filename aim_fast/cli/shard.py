"""``aim-fast shard``: a data set as tar shards, for many machines or disks that do not like small files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed


@click.command("shard", cls=RecipeCommand, short_help="Write a data set as tar shards (WebDataset).")
@click.option("--output", required=True, metavar="DIR", help="folder of the shards")
@click.option("--shard-size", default=1024, show_default=True, type=click.IntRange(1), help="MiB a shard, about")
@click.option("--split", "splits", multiple=True, help="train, validation or test; the first two when not given")
@recipe_options(("dataset", "data_root", "accept_gaps", "workers"), defaults="fixed")
def command(output: str, shard_size: int, splits: tuple[str, ...], **options: Any) -> None:
    """Write a data set as tar shards in WebDataset's layout; the same command goes on after an interruption.

    \b
    aim-fast shard --dataset ssv2 --data-root DIR --output SHARDS
    aim-fast train --dataset webdataset --data-root SHARDS --weights ...
    """
    from aim_fast.data import load_or_build_index
    from aim_fast.data.copies.shard import write_shards
    from aim_fast.data.formats import chosen_dataset
    from aim_fast.data.index.splits import same_classes
    from aim_fast.training.progress import RunProgress
    from aim_fast.training.recipe_file import load_recipe

    recipe = load_recipe(None, typed(options))
    dataset, root = chosen_dataset(recipe.data.dataset, recipe.data.data_root)
    folder = Path(output).expanduser()
    if not splits:
        same_classes(dataset, root)
    indices = [
        load_or_build_index(dataset, root, split, workers=recipe.data.workers, accept_gaps=recipe.data.accept_gaps)
        for split in dict.fromkeys(splits or ("train", "validation"))
    ]
    progress = RunProgress()
    try:
        report = write_shards(
            indices,
            folder,
            shard_bytes=shard_size * 2**20,
            workers=recipe.data.workers or 4,
            progress=progress.bar("clips"),
        )
    finally:
        progress.close()
    for index in indices:
        for note in index.notes:
            click.echo(f"{index.split}: {note}", err=True)
    for row in report.left_out:
        click.echo(f"{row.path}: left out, {row.error}", err=True)
    for split, shards in report.shards.items():
        click.echo(f"{split}: {report.clips[split]} clips in {shards} shards")
    left = f", {len(report.left_out)} clips left out (named above)" if report.left_out else ""
    click.echo(f"{folder}: {report.bytes / 1e6:.1f} MB{left}; train with --dataset webdataset --data-root {folder}")
