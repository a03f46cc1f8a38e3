"""``aim-fast features``: frozen features of a data set, written once, to train from in place of its videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from aim_fast.cli.options import RUN_FIELDS, RecipeCommand, recipe_options, trunk_option, typed, with_trunk
from aim_fast.data.choices import FeatureDtype
from aim_fast.training.part_groups import TRUNK_FIELDS

FIELDS = (
    *(
        "model",
        "weights",
        "weights_key",
        *TRUNK_FIELDS,
        "adapters",
        "adapter_layers",
        "temporal_place",
        "method",
        "head",
    ),
    *("dataset", "data_root", "shard_cache_gib", "accept_gaps", "frames", "interval", "views"),
    *("random_views", "view_starts", "batch_size", "backend", "seed"),
)


@click.command("features", cls=RecipeCommand, short_help="Store what a frozen trunk makes of every clip.")
@click.option("--recipe", metavar="NAME|FILE", help="a shipped recipe or a YAML file; chosen by --model when not given")
@trunk_option
@click.option("--split", "splits", multiple=True, help="train, validation or test; the first two when not given")
@click.option("--output", metavar="DIR", required=True, help="folder of the features; one below it for each split")
@click.option("--dtype", type=click.Choice(get_args(FeatureDtype)), default="float16", show_default=True)
@click.option("--quiet", is_flag=True, help="no progress on stderr")
@recipe_options((*FIELDS, *RUN_FIELDS), defaults="features")
def command(
    recipe: str | None,
    trunk: str | None,
    splits: tuple[str, ...],
    output: str,
    dtype: str,
    quiet: bool,
    **options: Any,
) -> None:
    """Write what a model's frozen trunk makes of every clip, once; `train --features DIR` then reads no video.

    \b
    aim-fast features --model promptclip_b16 --weights ViT-B-16.pt --dataset hmdb51 --data-root DIR --output FEATURES
    aim-fast features --trunk timm:vit_base_patch16_dinov3.lvd1689m --method probe --head attentive …

    Every clip has the recipe's views (PromptCLIP's: five random samplings). An interrupted command goes on where it
    stopped.
    """
    from aim_fast.training.features import extract_features
    from aim_fast.training.recipe_file import load_recipe

    usual = {} if recipe else {"model": "promptclip_b16"}
    resolved = load_recipe(recipe, usual | with_trunk(typed(options), trunk))
    for line in extract_features(resolved, splits or ("train", "validation"), Path(output), dtype, quiet):
        click.echo(line)
