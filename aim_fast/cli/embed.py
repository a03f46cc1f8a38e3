"""``aim-fast embed``: vectors of any videos, by any trunk or run, for other programs and for ``aim-fast search``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import click

from aim_fast.cli.options import RUN_FIELDS, RecipeCommand, recipe_options, trunk_option, typed, with_trunk
from aim_fast.data.choices import VectorDtype, VectorFormat, VectorsPer
from aim_fast.errors import UsageError
from aim_fast.training.part_groups import TRUNK_FIELDS, UNTOLD

MODEL_FIELDS = tuple(
    dict.fromkeys(("model", "weights", "weights_key", *TRUNK_FIELDS, *UNTOLD, "method", "head", "frames", "interval"))
)
FIELDS = (*MODEL_FIELDS, "dataset", "data_root", "shard_cache_gib", "accept_gaps", "views", "view_starts", "batch_size")
_LENGTH = re.compile(r"(\d+\.?\d*|\.\d+)(s?)")


@click.command("embed", cls=RecipeCommand, short_help="Write vectors of any videos, per clip, frame or window.")
@click.argument("videos", metavar="VIDEO|DIR|LIST...", nargs=-1)
@click.option("--run", metavar="RUN|CHECKPOINT", help="a trained model; or name a --trunk or a --model")
@click.option("--recipe", metavar="NAME|FILE", help="a shipped recipe or a YAML file; chosen by --model when not given")
@trunk_option
@click.option("--split", help="of --dataset, in place of videos: train, validation or test; train when not given")
@click.option("--output", metavar="DIR", required=True, help="folder of the vectors; goes on with one that was begun")
@click.option(
    "--per",
    type=click.Choice(get_args(VectorsPer)),
    help="one vector a clip (its views averaged), a frame, or a sliding window; window where --window or --stride is "
    "given, else clip",
)
@click.option("--window", metavar="N|Xs", help="length of a window, in frames, or in seconds as 4s")
@click.option("--stride", metavar="N|Xs", help="from a window to the next, or from a frame to the next; half a window")
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(VectorFormat)),
    default="safetensors",
    show_default=True,
    help="npy: a file a video, [T', D], as ActionFormer and OpenTAD read",
)
@click.option("--dtype", type=click.Choice(get_args(VectorDtype)), default="float32", show_default=True)
@click.option(
    "--per-file",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="videos a file: what a process takes at a time, and what one that is killed has done for nothing",
)
@click.option("--quiet", is_flag=True, help="no progress on stderr")
@recipe_options((*FIELDS, *RUN_FIELDS))
def command(
    videos: tuple[str, ...],
    run: str | None,
    recipe: str | None,
    trunk: str | None,
    split: str | None,
    output: str,
    per: Any,
    window: str | None,
    stride: str | None,
    form: Any,
    dtype: Any,
    per_file: int,
    quiet: bool,
    **options: Any,
) -> int:
    """Write vectors of videos: of files, of all in folders, of a list with a path a line, or of a data set's split.

    \b
    aim-fast embed recordings/ --run RUN --output vectors
    aim-fast embed films/*.mp4 --trunk vit_b16_clip --head text --weights ViT-B-16.pt --window 64 --stride 16 --output V
    aim-fast embed --dataset hmdb51 --data-root DIR --split test --run RUN --format parquet --output V

    What is there is complete: the same command goes on where it stopped, and started several times, by torchrun or by
    hand, its processes share the work. A video that cannot be read is named, and the exit status is 2. `search` finds
    clips in the vectors; to train on a frozen trunk's output, take `features` instead.
    """
    from aim_fast.data.windows import Length
    from aim_fast.training.embedder import open_embedder
    from aim_fast.training.embedding import Videos, Wanted, embed

    def length(name: str, text: str | None) -> Length | None:
        if text is None:
            return None
        match = _LENGTH.fullmatch(text)
        if match is None or float(match[1]) == 0 or not (match[2] or match[1].isdecimal()):
            raise UsageError(f"{name} {text}: give frames, such as 16, or seconds, such as 0.5s")
        return Length(float(match[1]), "seconds" if match[2] else "frames")

    fields = typed(options)
    if bool(videos) == ("dataset" in fields):
        raise UsageError("give videos, folders or a list; or --dataset NAME and --data-root DIR; one of the two")
    if split and "dataset" not in fields:
        raise UsageError("--split is of a data set: give --dataset NAME and --data-root DIR too")
    asked = Wanted(
        per or ("window" if window or stride else "clip"),
        length("--window", window),
        length("--stride", stride),
        form,
        dtype,
        per_file,
    )
    where = Videos(videos, (split or "train") if "dataset" in fields else None)
    embedder = open_embedder(run, recipe, model_fields(run, recipe, trunk, fields))
    failed = embed(embedder, where, Path(output), asked, quiet)
    for video, reason in failed.items():
        click.echo(f"aim-fast: error: {reason if reason.startswith(video) else f'{video} {reason}'}", err=True)
    click.echo(f"{output}: all vectors are there, by {embedder.trained.identity.model}, per {asked.per}, as {form}")
    return 2 if failed else 0


def model_fields(run: str | None, recipe: str | None, trunk: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields by which a model is opened. Raises UsageError where none is named, or two are."""
    if run:
        if trunk or recipe:
            raise UsageError("--run says itself what its model is: leave --trunk and --recipe out")
        return fields
    if not (trunk or recipe or "model" in fields):
        raise UsageError("no model: give --run RUN, or --trunk NAME or --model NAME with its --weights")
    return with_trunk(({"method": "probe"} if trunk else {}) | fields, trunk)
