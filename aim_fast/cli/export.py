"""``aim-fast export``: a run as one file that other programs run."""

from __future__ import annotations

from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed
from aim_fast.training.part_groups import UNTOLD


@click.command("export", cls=RecipeCommand, short_help="Write a run as one file that runs without it.")
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.option("--format", type=click.Choice(["pt2", "onnx", "aoti"]), required=True, help="see docs/export.md")
@click.option("--output", metavar="FILE", help="model.pt2, model.onnx or model.aoti.pt2 in RUN when not given")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="of the weights and products",
)
@click.option(
    "--clips", metavar="VIDEO|DIR", multiple=True, help="videos to check on; the run's validation split if not given"
)
@click.option("--class-names", metavar="FILE", help="classes to tell apart, one a line, by a model that reads names")
@click.option("--wise-ft", metavar="X", type=float, help="text head: X of the trained weights + 1 - X of the frozen")
@recipe_options(("views", "weights", "weights_key", "model", *UNTOLD, "device", "backend"), defaults="run")
def command(run: str, format: str, output: str | None, precision: str, clips: tuple[str, ...], **options: Any) -> None:
    """Write RUN as one file: uint8 clips in, logits out, with classes and sampling in its metadata.

    pt2 is torch.export's, with the engine's operators (--backend reference: with torch's alone); onnx runs in
    onnxruntime, without this project; aoti is machine code for this kind of processor, or with --device cuda for this
    GPU. What differs from the run on real clips is not written.

    \b
    aim-fast export runs/ssv2 --format onnx
    aim-fast export runs/ssv2 --format onnx --precision float16 --output ssv2.onnx --clips videos
    """
    from aim_fast.training.export import export

    export(run, format, output, precision, clips, typed(options), click.echo)
