"""``aim-fast search``: the clips nearest to a clip, or to words, among the vectors of ``aim-fast embed``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed
from aim_fast.errors import UsageError
from aim_fast.printable import printable


@click.command("search", cls=RecipeCommand, short_help="Find the clips nearest to a clip or to words.")
@click.argument("vectors", metavar="DIR")
@click.argument("video", metavar="[VIDEO]", required=False)
@click.option("--text", metavar="WORDS", help="words to search by, in place of a video; of models with a text tower")
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True, help="how many to name")
@click.option("--run", metavar="RUN|CHECKPOINT", help="the trained model, where it is elsewhere by now")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@recipe_options(("weights", "device", "precision"), defaults="run")
def command(
    vectors: str, video: str | None, text: str | None, top_k: int, run: str | None, as_json: bool, **options: Any
) -> None:
    """The vectors in DIR, written by `embed`, that are nearest to VIDEO or to words, by cosine: video, time, score.

    \b
    aim-fast search vectors clip.mp4
    aim-fast search vectors --text "a dog jumps over a fence" --top-k 10 --json
    """
    from aim_fast.training.search import search

    if (video is None) == (text is None):
        raise UsageError("give a video or --text WORDS to search by, one of the two")
    found = search(Path(vectors), video, text, run, typed(options), top_k)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in found], indent=1))
        return
    for row in found:
        times = "whole video" if row.start is None else f"{row.start:.2f} to {row.end:.2f} s"
        click.echo(f"{row.score:7.4f}  {times:>20}  {printable(row.video)}")
