"""``aim-fast predict``: class names and probabilities for any video file, camera or address."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aim_fast.api import PREDICTED, predict
from aim_fast.cli.options import RecipeCommand, recipe_options, run_code_option, typed
from aim_fast.printable import printable

if TYPE_CHECKING:
    from aim_fast.training.prediction import Prediction
    from aim_fast.training.watching import Watch


@click.command("predict", cls=RecipeCommand, short_help="Name the most probable classes of videos, or of a camera.")
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.argument("videos", metavar="VIDEO...", nargs=-1, required=True)
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True, help="classes to name for each video")
@click.option("--json", "as_json", is_flag=True, help="print JSON; of a camera or an address a line a window")
@click.option(
    "--timeline",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="slide a window over each video instead, and write its class probabilities over time to DIR: JSON and a plot",
)
@click.option("--window", metavar="SECONDS", type=float, help="length of a window in time; 4 when not given")
@click.option("--stride", metavar="SECONDS", type=float, help="time between windows; half a window when not given")
@click.option("--class-names", metavar="FILE", help="classes to tell apart, one a line, by a model that reads names")
@click.option("--repeat-frames", is_flag=True, help="take videos with fewer frames than the model, repeating frames")
@click.option("--wise-ft", metavar="X", type=float, help="text head: X of the trained weights + 1 - X of the frozen")
@run_code_option
@recipe_options(PREDICTED, defaults="run")
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
    """The most probable classes of each VIDEO, by the model of RUN: a file, or the .npy file of an array [T, H, W, 3].

    RUN may be an export too. A file that cannot be read is named on stderr and in the JSON, with its reason; the others
    are predicted, and the exit status is 2.

    VIDEO may be a camera's number or an address (rtsp, http, tcp, udp …): a window slides over it as it comes, until
    the address ends, or by Ctrl-C or SIGTERM.

    \b
    aim-fast predict RUN clip.mp4 --top-k 5
    aim-fast predict RUN long.mp4 --timeline timelines --window 4 --stride 1
    aim-fast predict RUN 0
    aim-fast predict RUN rtsp://camera/stream --window 2
    """
    from aim_fast.data.video.camera import is_live, shown

    live = [video for video in videos if is_live(video)]
    if live and (timeline is not None or len(videos) > 1):
        raise click.UsageError(f"{shown(live[0])} is watched until it ends: give it alone, without --timeline", ctx)
    if live:
        watch = predict(run, live[0], top_k, window=window, stride=stride, **options)
        return _watched(watch, as_json)
    if timeline is not None:
        return _timelines(run, list(videos), timeline, top_k, as_json, window, stride, typed(options))
    for name, value in (("--window", window), ("--stride", stride)):
        if value is not None:
            raise click.UsageError(f"{name} is of a timeline, a camera or an address: give --timeline DIR too", ctx)
    results = predict(run, list(videos), top_k, repeat_frames=repeat_frames, **options)
    if as_json:
        click.echo(json.dumps([result.to_dict() for result in results], indent=2))
    for result in results:
        if result.error:
            click.echo(f"aim-fast: error: {result.error}", err=True)
        elif not as_json:
            click.echo(result.video)
            for label, probability in zip(result.labels, result.probabilities):
                click.echo(f"  {100 * probability:5.1f} %  {label}")
    return 2 if any(result.error for result in results) else 0


def _watched(watch: Watch, as_json: bool) -> int:
    """Prints what a camera or an address shows: on a terminal in one place, else a line a window."""
    from aim_fast.training.stop import interrupted_by_sigterm

    ending = "ended"
    with interrupted_by_sigterm(), contextlib.ExitStack() as stack:
        stack.callback(watch.close)
        show = _line if as_json or not sys.stdout.isatty() else _block(stack)
        try:
            for prediction in watch:
                if as_json:
                    click.echo(json.dumps(prediction.to_dict()))
                else:
                    show(prediction)
        except KeyboardInterrupt as stop:
            ending = f"stopped by {stop.args[0] if stop.args else 'Ctrl-C'}"
        except BrokenPipeError:  # nobody reads any more, as behind `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ending = "stopped, as nobody reads the output"
    click.echo(f"aim-fast: {watch.windows.name}: {ending}; {watch.summary()}", err=True)
    return 0


def _line(prediction: Prediction) -> None:
    classes = (f"{100 * value:5.1f} %  {label}" for label, value in zip(prediction.labels, prediction.probabilities))
    click.echo(f"{prediction.start:8.1f} to {prediction.end:8.1f} s  {'   '.join(classes)}")


def _block(stack: contextlib.ExitStack) -> Callable[[Prediction], None]:
    """A function that draws a prediction over the one before it."""
    from rich.live import Live
    from rich.text import Text

    live = stack.enter_context(Live(auto_refresh=False))

    def show(prediction: Prediction) -> None:
        lines = [f"{prediction.video}  {prediction.start:.1f} to {prediction.end:.1f} s"]
        for label, value in zip(prediction.labels, prediction.probabilities):
            lines.append(f"  {100 * value:5.1f} %  {'━' * round(20 * value):20}  {printable(label)}")
        live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)

    return show


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
