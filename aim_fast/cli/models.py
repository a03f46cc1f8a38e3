"""``aim-fast models``: what there is, how large it is, what a view costs."""

from __future__ import annotations

import json
from typing import Any

import click

from aim_fast.cli.options import words_of
from aim_fast.models.heads import HEADS
from aim_fast.models.methods import method_lines
from aim_fast.training.part_groups import or_list


@click.command("models", short_help="List models with parameters and GFLOPs.")
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="print JSON, with the published figures where there are some")
@click.option(
    "--frames",
    multiple=True,
    type=click.IntRange(1),
    help="frames a view; the published ones, or the model's own, when not given",
)
@click.option(
    "--views", type=click.IntRange(1), help="views a video; 3 when not given, or those of the published GFLOPs beside"
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    help="what the head and the adapters are for: kinetics400, ssv2 and so on; these two when not given",
)
@click.option("--num-tadapter", type=click.IntRange(1, 2), help="temporal adapters a block, instead of the data set's")
@click.option("--num-classes", type=click.IntRange(1), help="classes of the head, instead of the data set's")
@click.option(
    "--method",
    "methods",
    metavar="LIST",
    multiple=True,
    help=f"put the trunks under these methods: {or_list(method_lines())}",
)
@click.option("--head", "heads", metavar="LIST", multiple=True, help=f"and under these heads: {or_list(HEADS)}")
@click.option("--parts", is_flag=True, help="list trunks, methods and heads instead, and which combinations there are")
def command(
    names: tuple[str, ...],
    as_json: bool,
    parts: bool,
    frames: tuple[int, ...],
    views: int | None,
    datasets: tuple[str, ...],
    methods: tuple[str, ...],
    heads: tuple[str, ...],
    **overrides: Any,
) -> None:
    """Names, parameters, and multiply-adds of a video in billions (GFLOPs, as the literature counts them).

    All models without NAME, those of torchvision and of transformers, where it is installed, for one data set;
    and what was published of others; open_clip:NAME and timm:NAME are models too. A NAME may have settings:
    NAME,key=value.

    \b
    aim-fast models aim_vit_b16_clip open_clip:ViT-H-14 --frames 16
    aim-fast models timm:vit_base_patch16_dinov3 --method aim,probe --head linear,attentive
    aim-fast models timm:vit_base_patch16_dinov3 --parts
    """
    from aim_fast.errors import UsageError
    from aim_fast.studies.model_table import TABLE_DATASETS, model_table, part_table

    if parts:
        asked = {"frames": frames, "views": views, "dataset": datasets, "method": methods, "head": heads, **overrides}
        if odd := [f"--{name.replace('_', '-')}" for name, value in asked.items() if value]:
            raise UsageError(f"--parts lists what can be combined, whatever {', '.join(odd)}: leave one of the two out")
        table = part_table(names)
        click.echo(json.dumps(table, indent=2) if as_json else _parts(table))
        return

    if not names:
        click.echo("counting every model takes a minute; with names, those alone", err=True)
    chosen = {name: value for name, value in overrides.items() if value is not None}
    rows = model_table(
        frames,
        views,
        datasets or TABLE_DATASETS,
        names,
        words_of(methods),
        words_of(heads),
        lambda line: click.echo(f"left out: {line}", err=True),
        **chosen,
    )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    labels = [
        _label(row["name"], {k: value for k, value in row["overrides"].items() if k not in chosen}) for row in rows
    ]
    width = max(len(label) for label in labels) + 1
    head = f"{'dataset':<12}{'frames':>7}{'views':>7}{'parameters':>14}{'trainable':>13}{'GFLOPs':>10}"
    click.echo(f"{'model':<{width}}{head}  published GFLOPs, top-1")
    notes = {}
    for label, row in zip(labels, rows):
        published = row["published"] or {}
        columns = (
            ("frames", 7, ""),
            ("views", 7, ""),
            ("params", 14, ","),
            ("trainable", 13, ","),
            ("gflops", 10, ".1f"),
        )
        figures = (f"{'–' if row[key] is None else format(row[key], form):>{size}}" for key, size, form in columns)
        line = f"{label:<{width}}{row['dataset']:<12}{''.join(figures)}  {_published(published, label, row['frames'])}"
        click.echo(line.rstrip() if row["params"] is None else line)
        if "note" in published:
            notes[published["name"], published["note"]] = f"{published['name']}: {published['note']}"
    for note in notes.values():
        click.echo(note)


def _published(found: dict[str, Any], label: str, frames: int | None) -> str:
    """What was printed of a row: GFLOPs of all views, top-1, and by their words what else there is."""
    if not found:
        return ""
    gflops = f"{found['gflops_a_view']} a view" if "gflops_a_view" in found else found.get("gflops", "–")
    forms = {"params": "{} M", "trainable": "{} M trained", "views": f"{found.get('printed_frames', frames)}x{{}}"}
    words = [
        str(gflops),
        str(found.get("top1", "–")),
        *(forms[key].format(found[key]) for key in forms if key in found),
    ]
    words += [found[key] for key in ("name", "rung", "weights") if key in found and found[key] != label]
    if counted := found.get("counted"):
        forms = {"params": "{} M", "trainable": "{} M trained", "gflops": "{} GFLOPs"}
        words.append(f"counted: {', '.join(forms[key].format(value) for key, value in counted.items())}")
    return ", ".join(words)


def _parts(table: dict[str, dict[str, Any]]) -> str:
    there = table.pop("combinations")
    trunks = {
        name: line or f"{', '.join(there[name]['methods'])} × {', '.join(there[name]['heads'])}"
        for name, line in table["trunks"].items()
    }
    width = max(len(name) for rows in table.values() for name in rows) + 2
    lines = []
    for kind, rows in (table | {"trunks": trunks}).items():
        lines += [kind, *(f"  {name:<{width}}{line}".rstrip() for name, line in rows.items())]
    return "\n".join(lines)


def _label(name: str, overrides: dict[str, Any]) -> str:
    """A row's name as ``aim-fast compare`` takes it: NAME,key=value."""
    settings = (f"{key}={value}" if value != [] else f"{key}=none" for key, value in overrides.items())
    return ",".join([name, *(setting.replace(" ", "").replace("'", "") for setting in settings)])
