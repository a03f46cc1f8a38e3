"""``aim-fast predict``: class names and probabilities for any video file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed
from aim_fast.training.part_groups import UNTOLD


@click.command("predict", cls=RecipeCommand, short_help="Name the most probable classes of video files.")
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.argument("videos", metavar="VIDEO...", nargs=-1, required=True)
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True, help="classes to name for each video")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option(
    "--timeline",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="slide a window over each video instead, and write its class probabilities over time to DIR: JSON and a plot",
)
@click.option("--window", metavar="SECONDS", type=float, help="length of the timeline's window; 4 when not given")
@click.option("--stride", metavar="SECONDS", type=float, help="time between windows; half a window when not given")
@click.option("--class-names", metavar="FILE", help="classes to tell apart, one a line, by a model that reads names")
@click.option("--repeat-frames", is_flag=True, help="take videos with fewer frames than the model, repeating frames")
@click.option("--wise-ft", metavar="X", type=float, help="text head: X of the trained weights + 1 - X of the frozen")
@recipe_options(("views", "weights", "weights_key", "model", *UNTOLD, "device", "precision"), defaults="run")
@click.pass_context
def command(
    ctx: click.Context,
    run: str,
    videos: tuple[str, ...],
    top_k: int,
    as_json: bool,
    repeat_frames: bool,
    timeline: str | None,
    window: float | None,
    stride: float | None,
    **options: Any,
) -> int:
    """The most probable classes of each VIDEO, by the model of RUN.

    A file that cannot be read is named on stderr and in the JSON, with its reason; the others are predicted, and the
    exit status is 2.

    \b
    aim-fast predict RUN clip.mp4 --top-k 5
    aim-fast predict RUN long.mp4 --timeline timelines --window 4 --stride 1
    """
    if timeline is not None:
        return _timelines(run, list(videos), timeline, top_k, as_json, window, stride, typed(options))
    for name, value in (("--window", window), ("--stride", stride)):
        if value is not None:
            raise click.UsageError(f"{name} is of a timeline: give --timeline DIR too", ctx)
    from aim_fast.training.prediction import predict_files

    results = predict_files(run, list(videos), top_k, repeat_frames, typed(options))
    if as_json:
        click.echo(json.dumps(results, indent=2))
    for result in results:
        if "error" in result:
            click.echo(f"aim-fast: error: {result['error']}", err=True)
        elif not as_json:
            click.echo(result["video"])
            for row in result["predictions"]:
                click.echo(f"  {100 * row['probability']:5.1f} %  {row['label']}")
    return 2 if any("error" in result for result in results) else 0


def _timelines(
    run: str,
    videos: list[str],
    folder: str,
    top_k: int,
    as_json: bool,
    window: float | None,
    stride: float | None,
    fields: dict[str, Any],
) -> int:
    from aim_fast.training.timeline import Timeline, write_timelines

    failed, printed = False, []
    for result in write_timelines(run, videos, Path(folder), top_k, window, stride, fields):
        if not isinstance(result, Timeline):
            click.echo(f"aim-fast: error: {result['error']}", err=True)
            failed = True
            printed.append(result)
        elif as_json:
            printed.append(json.loads(result.to_json()))
        else:
            count = "1 window" if len(result.windows) == 1 else f"{len(result.windows)} windows"
            click.echo(f"{result.video}: {count}, {Path(folder) / Path(result.video).name}.json")
            for start, end, label, share in result.segments():
                click.echo(f"  {start:7.1f} to {end:7.1f} s  {100 * share:5.1f} %  {label}")
    if as_json:
        click.echo(json.dumps(printed, indent=1))
    return 2 if failed else 0
