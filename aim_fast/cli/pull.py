"""``aim-fast pull``: a run from the Hugging Face hub."""

from __future__ import annotations

import click


@click.command("pull", short_help="Fetch a run from the Hugging Face hub.")
@click.argument("repo", metavar="USER/NAME")
@click.option("--output", metavar="DIR", help="the new folder; NAME if not given")
@click.option("--revision", metavar="WORD", help="a branch, tag or commit of the repository")
def command(repo: str, output: str | None, revision: str | None) -> None:
    """Fetch what `aim-fast push` sent, whole and verified, for eval and predict.

    \b
    aim-fast pull me/aim-ssv2 --output runs/aim-ssv2
    """
    from aim_fast.training.sharing import pull

    click.echo(f"pulled: {pull(repo, output, revision)}")
