"""``aim-fast index``: scans a data set once and says what is in it."""

from __future__ import annotations

from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed


@click.command("index", cls=RecipeCommand, short_help="Scan a data set; name missing and broken videos.")
@click.option("--split", "splits", multiple=True, help="train, validation or test; the first two when not given")
@click.option("--rebuild", is_flag=True, help="scan every file again")
@click.option("--strict", is_flag=True, help="exit with status 2 when a video is missing or broken")
@recipe_options(("dataset", "data_root", "multi_label", "shard_cache_gib", "accept_gaps", "workers"), defaults="fixed")
def command(splits: tuple[str, ...], rebuild: bool, strict: bool, **options: Any) -> int:
    """Scan a data set: frames, sizes and codecs of its videos; broken and missing ones by name.

    \b
    aim-fast index --dataset ssv2 --data-root DIR
    """
    from aim_fast.data import load_or_build_index
    from aim_fast.data.formats import chosen_dataset
    from aim_fast.data.index.splits import same_classes
    from aim_fast.errors import DataError
    from aim_fast.training.recipe_file import load_recipe

    data = load_recipe(None, typed(options)).data
    dataset, root = chosen_dataset(data.dataset, data.data_root, data.shard_cache_gib)
    how: dict[str, Any] = {"workers": data.workers, "accept_gaps": data.accept_gaps, "multi_label": data.multi_label}
    bad = 0
    if not splits:
        same_classes(dataset, root, multi_label=data.multi_label)
    for split in splits or ("train", "validation"):
        index = load_or_build_index(dataset, root, split, rebuild=rebuild, **how)
        for line in index.summary(named=0):
            click.echo(line)
        for row in (*index.missing, *index.broken):
            click.echo(f"{row.path}: {row.error}", err=True)
        bad += len(index.missing) + len(index.broken)
    if bad and strict:
        raise DataError(f"{root}: {bad} videos are missing or broken, named above; replace them, or leave out --strict")
    return 0
