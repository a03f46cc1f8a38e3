"""``aim-fast look``: what is in a data set, before anything is trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed


@click.command("look", cls=RecipeCommand, short_help="Look at a data set: frames, balance, copies, faults.")
@click.option("--split", "splits", multiple=True, help="train, validation or test; those that are there if not given")
@click.option("--output", metavar="FILE", default="look.html", show_default=True, help="the page")
@click.option("--json", "json_file", metavar="FILE", help="write the table as JSON; FILE - is standard output")
@recipe_options(("dataset", "data_root", "multi_label", "workers"), defaults="fixed")
def command(splits: tuple[str, ...], output: str, json_file: str | None, **options: Any) -> None:
    """Frames of every class, lengths, sizes, rates, balance, near-copies across splits, and what is wrong.

    \b
    aim-fast look --data-root DIR

    Without --dataset the data set is recognised by what is in DIR.
    """
    from aim_fast.data import SPLITS, load_or_build_index
    from aim_fast.data.formats import chosen_dataset, dataset_layout
    from aim_fast.data.formats.recognition import recognised
    from aim_fast.errors import DataError
    from aim_fast.files import write_whole
    from aim_fast.report.look import look_at
    from aim_fast.training.progress import RunProgress
    from aim_fast.training.recipe_file import load_recipe
    from aim_fast.training.report import check_writable

    data = load_recipe(None, typed(options)).data
    for file in (output, json_file if json_file != "-" else None):
        if file:
            check_writable(Path(file))
    dataset, root = chosen_dataset(data.dataset or (data.data_root and recognised(data.data_root)), data.data_root)
    if not data.dataset:
        click.echo(f"{root}: taken for --dataset {dataset}", err=True)
    several = data.multi_label or dataset_layout(dataset).labels == "several"
    how: dict[str, Any] = {"workers": data.workers, "accept_gaps": True, "multi_label": several}
    indices: list[Any] = []
    for split in splits or SPLITS:
        try:
            index = load_or_build_index(dataset, root, split, **how)
        except DataError as error:
            if splits or split == "train":
                raise
            click.echo(f"no {split} split: {error}", err=True)
            continue
        if splits or [row.path for row in index.rows] not in [[row.path for row in known.rows] for known in indices]:
            indices.append(index)
    progress = RunProgress()
    try:
        look = look_at(indices, data.workers, progress.bar("looking at clips"))
    finally:
        progress.close()
    look.write_page(Path(output))
    content = json.dumps(look.to_dict(), indent=2)
    if json_file and json_file != "-":
        write_whole(Path(json_file), content + "\n")
    click.echo(content if json_file == "-" else look.text())
    click.echo(f"page: {output}", err=json_file == "-")
