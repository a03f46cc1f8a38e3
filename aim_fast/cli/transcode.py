"""``aim-fast transcode``: a data set in files that decode fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed


@click.command("transcode", cls=RecipeCommand, short_help="Encode a data set anew, so that it decodes fast.")
@click.option("--output", required=True, metavar="DIR", help="folder of the new data set")
@click.option("--short-side", default=256, show_default=True, type=click.IntRange(32), help="pixels; never enlarges")
@click.option("--gop", default=12, show_default=True, type=click.IntRange(1, 250), help="frames between key frames")
@click.option("--codec", default="h264", show_default=True, help="h264 in mp4, or vp9 in webm")
@click.option("--quality", type=click.IntRange(0, 63), help="CRF, lower is better and larger; 23 (h264) or 31 (vp9)")
@recipe_options(("dataset", "data_root", "accept_gaps", "workers"), defaults="fixed")
def command(output: str, short_side: int, gop: int, codec: str, quality: int | None, **options: Any) -> None:
    """Encode every video anew with a short side, close key frames and plain timestamps; labels are carried over.

    The same command goes on after an interruption. A report of sizes and decode speeds is left in DIR/transcode.json.

    \b
    aim-fast transcode --dataset kinetics400 --data-root DIR --output DIR256
    aim-fast train --dataset kinetics400 --data-root DIR256 --weights ...
    """
    from aim_fast.data.copies.transcode import REPORT, transcode
    from aim_fast.data.formats import chosen_dataset
    from aim_fast.data.video.encode import CODECS, Encoding
    from aim_fast.errors import UsageError, nearest
    from aim_fast.training.progress import RunProgress
    from aim_fast.training.recipe_file import load_recipe

    if codec not in CODECS:
        raise UsageError(f"unknown codec {codec!r}; {nearest(codec, CODECS)}")
    recipe = load_recipe(None, typed(options))
    dataset, root = chosen_dataset(recipe.data.dataset, recipe.data.data_root)
    encoding = Encoding(short_side, gop, codec, CODECS[codec].quality if quality is None else quality)
    progress = RunProgress()
    try:
        report = transcode(
            dataset,
            root,
            Path(output),
            encoding,
            workers=recipe.data.workers or None,
            accept_gaps=recipe.data.accept_gaps,
            progress=progress.bar("videos"),
        )
    finally:
        progress.close()
    for note in report.notes:
        click.echo(note, err=True)
    for path, error in (report.skipped | report.failed).items():
        click.echo(f"{path}: left out, {error}", err=True)
    for line in report.text():
        click.echo(line)
    left = len(report.skipped) + len(report.failed)
    click.echo(
        f"{Path(output) / REPORT} holds the report" + (f"; {left} videos left out (named above)" if left else "")
    )
