"""`aim-fast predict`: class names and probabilities for any video file."""

from __future__ import annotations

import json
from typing import Any

import click

from aim_fast.cli.options import recipe_options, typed


@click.command("predict")
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.argument("videos", metavar="VIDEO...", nargs=-1, required=True)
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True, help="classes to name for each video")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--repeat-frames", is_flag=True, help="take videos with fewer frames than the model, repeating frames")
@recipe_options(("views", "weights", "model", "adapter_scale", "device", "precision"), defaults="run")
@click.pass_context
def command(
    ctx: click.Context,
    run: str,
    videos: tuple[str, ...],
    top_k: int,
    as_json: bool,
    repeat_frames: bool,
    **options: Any,
) -> int:
    """The most probable classes of each VIDEO, by the model of RUN.

    A file that cannot be read is named on stderr and in the JSON, with its reason; the others are predicted, and the
    exit status is 2.
    """
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
