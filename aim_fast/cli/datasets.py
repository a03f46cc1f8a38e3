"""``aim-fast datasets``: the data sets that can be trained on, how they are laid out, and where to get them."""

from __future__ import annotations

import json
import textwrap

import click


@click.command("datasets", short_help="List data sets, their layouts, where to get them.")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def command(as_json: bool) -> None:
    """Names for --dataset, the layout that each expects under --data-root, and where to get it."""
    from aim_fast.data.formats import DATASETS, dataset_layout

    layouts = {name: dataset_layout(name) for name in DATASETS}
    rows = [{"name": name, "layout": layout.text, "source": layout.source} for name, layout in layouts.items()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    alike: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        alike.setdefault((row["layout"], row["source"]), []).append(row["name"])
    for (shape, origin), names in alike.items():
        click.echo(", ".join(names))
        click.echo(textwrap.fill(shape, 100, initial_indent="  layout  ", subsequent_indent=" " * 10))
        click.echo(f"  from    {origin}")
