"""``aim-fast push``: a run to the Hugging Face hub."""

from __future__ import annotations

import click


@click.command("push", short_help="Send a run to the Hugging Face hub, with a card.")
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.argument("repo", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="make a new repository that only you see")
@click.option("--licence", metavar="WORD", help="licence in the card, in the hub's words: mit, apache-2.0 …")
@click.option("--with-trunk", is_flag=True, help="send the frozen trunk too; else it is named")
def command(run: str, repo: str, private: bool, licence: str | None, with_trunk: bool) -> None:
    """Send the best checkpoint of RUN: what was trained, its recipe without local paths, and a card.

    \b
    aim-fast push runs/ssv2 me/aim-ssv2 --licence mit
    """
    from aim_fast.training.sharing import push

    url = push(run, repo, private=private, licence=licence, with_trunk=with_trunk)
    if licence is None:
        click.echo("the card states no licence: --licence WORD does", err=True)
    click.echo(f"pushed: {url}")
