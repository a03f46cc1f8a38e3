"""``aim-fast convert``: published checkpoints into runs or single files, and runs into published checkpoints."""

from __future__ import annotations

from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed
from aim_fast.training.part_groups import UNTOLD


@click.command("convert", cls=RecipeCommand, short_help="Turn a trained model into another form.")
@click.argument("source", metavar="RUN|CHECKPOINT")
@click.argument("destination", metavar="FOLDER|FILE")
@click.option("--classes", metavar="FILE", help="class names of a checkpoint without: one a line, or JSON")
@click.option("--merge", is_flag=True, help="merge what the method added into the trunk: of zeroi2v and lora")
@recipe_options(
    ("model", *UNTOLD, "weights", "weights_key"),
    defaults="source",
)
def command(source: str, destination: str, classes: str | None, merge: bool, **options: Any) -> None:
    """Turn a trained model into another form; every tensor keeps its bits, but where --merge makes new ones.

    Which model a checkpoint is of is read from its tensors. FILE ending in .pth or .pt has the published names
    (backbone., cls_head., below state_dict; PromptCLIP none), in .safetensors bare ones; FOLDER becomes a run.

    \b
    aim-fast convert vit_b_clip_32frame_k400.pth runs/published --classes k400_classes.txt
    aim-fast convert runs/ssv2 aim_ssv2.pth
    aim-fast convert runs/zeroi2v merged.safetensors --merge
    """
    from aim_fast.training.conversion import convert

    for line in convert(source, destination, typed(options), classes, merge):
        click.echo(line)
