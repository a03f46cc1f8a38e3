"""``aim-fast compare``: models side by side, measured on this machine in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from aim_fast.cli.options import RecipeCommand, recipe_options, run_code_option, words_of
from aim_fast.cli.study import OWN, refuse, train_rows
from aim_fast.training.recipe import FIELDS

if TYPE_CHECKING:
    from aim_fast.studies.comparison import Row

# Fields that are options of their own here.
_NAMED_HERE = ("dataset", "frames", "batch_size", "method", "head")


@click.command("compare", cls=RecipeCommand)
@click.argument("models", metavar="MODEL|RUN...", nargs=-1)
@click.option("--trunk", "trunks", metavar="LIST", multiple=True, help="trunks: MODELs as a list, or repeated")
@click.option("--method", "methods", metavar="LIST", multiple=True, help="put trunks and MODELs under these methods")
@click.option(
    "--head", "heads", metavar="LIST", multiple=True, help="and under these heads: all combinations there are"
)
@click.option(
    "--dataset",
    default="kinetics400",
    show_default=True,
    help="what heads and adapters are for, and whose published top-1 stands beside: kinetics400, kinetics700, ssv2, "
    "diving48, ucf101 or hmdb51",
)
@click.option("--frames", type=click.IntRange(1), help="frames a clip of what takes any; each model's own if not given")
@click.option("--num-classes", type=click.IntRange(1), help="classes of the heads, instead of the data set's")
@click.option("--no-speed", is_flag=True, help="count only: nothing runs and no memory is taken")
@click.option("--batch-size", type=click.IntRange(1), help="clips of a pass: 8 on a GPU, 1 on a CPU when not given")
@click.option("--rounds", type=click.IntRange(1), help="turns of each model: 10 on a GPU, 3 on a CPU when not given")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--csv", "csv_file", metavar="FILE", help="write the table as CSV as well")
@click.option("--plot", metavar="PNG", help="draw the table as well")
@click.option(
    "--train", is_flag=True, help="train the MODELs: methods on --trunk, and models beside them, into a table"
)
@click.option("--output", metavar="DIR", help="with --train, its folder; runs/compare-DATASET when not given")
@click.option(
    "--budget",
    metavar="WORDS",
    help="with --train, what each row may spend: published (its recipe's epochs, when not given), epochs=N or hours=H",
)
@click.option("--seeds", metavar="LIST", help="with --train, seeds that every row is trained with, such as 0,1,2")
@click.option("--recipe", metavar="NAME|FILE", help="with --train, one recipe for all rows, not each one's own")
@click.option("--demo", is_flag=True, help="with --train, on moving objects and a trunk made here")
@click.option("--quiet", is_flag=True, help="no progress on stderr")
@run_code_option
@recipe_options(name for name in FIELDS if name not in (*OWN, *_NAMED_HERE))
def command(
    models: tuple[str, ...],
    trunks: tuple[str, ...],
    methods: tuple[str, ...],
    heads: tuple[str, ...],
    dataset: str,
    frames: int | None,
    num_classes: int | None,
    no_speed: bool,
    batch_size: int | None,
    rounds: int | None,
    as_json: bool,
    csv_file: str | None,
    plot: str | None,
    train: bool,
    quiet: bool,
    device: str | None,
    precision: str | None,
    run_code: bool | None,
    **options: Any,
) -> int:
    """Cost, speed, memory and accuracy of models, in one table.

    MODEL is a name of `aim-fast models`, with overrides after commas; a shipped recipe; or a model of another library,
    under random weights: torchvision:mvit_v1_b, torchvision:mvit_v2_s, torchvision:swin3d_t (_s, _b),
    transformers:timesformer, transformers:vivit, transformers:videomae, transformers:x_clip. RUN is a trained run,
    EXPORT a file of `aim-fast export`, of which the forward pass alone is measured.
    With --method or --head each name of `aim-fast models` stands for all combinations; those that cannot be are left
    out, saying why.

    \b
    aim-fast compare aim_vit_b16_clip aim_vit_b16_clip,tune=all torchvision:mvit_v2_s runs/k400 --plot compare.png
    aim-fast compare --trunk vit_b16_clip,timm:vit_base_patch16_dinov3 --method aim,probe --head linear,attentive

    With --train every MODEL is a method on --trunk, or a model beside them, and is trained, one after another, by its
    own recipe; the same command again goes on where it was stopped.

    \b
    aim-fast compare --dataset ssv2 --data-root DIR --weights ViT-B-16.pt --train aim st_adapter zeroi2v lora probe
    """
    if train:
        counting = {
            "method": methods,
            "head": heads,
            "num_classes": num_classes,
            "no_speed": no_speed,
            "rounds": rounds,
            "run_code": run_code,
        }
        refuse(counting, "is of counting and measuring alone: leave it out with --train")
        typed_dataset = click.get_current_context().get_parameter_source("dataset") is not ParameterSource.DEFAULT
        options |= {"dataset": dataset if typed_dataset else None, "frames": frames, "batch_size": batch_size}
        options |= {"device": device, "precision": precision}
        return train_rows(models, trunks, options, quiet, as_json, csv_file, plot)
    refuse(options, "is of --train: add that, or leave it out")
    from aim_fast.files import write_whole
    from aim_fast.models.registry import find_entry
    from aim_fast.studies.comparison import count, measure, memory_meaning, to_csv, to_dicts
    from aim_fast.studies.contenders import Asked, dataset_classes, find_contenders
    from aim_fast.training.devices import single_place
    from aim_fast.training.progress import RunProgress
    from aim_fast.training.report import check_writable

    names = words_of(trunks)
    if not models and not names:
        raise click.MissingParameter(param_type="argument", param_hint="'MODEL|RUN...' or --trunk")
    for file in filter(None, (csv_file, plot)):
        check_writable(Path(file))
    dataset_classes(dataset)
    place = single_place(device or "auto", precision or "auto")
    for name in names:
        find_entry(name.partition(",")[0])
    asked = Asked(dataset, frames, num_classes, bool(run_code))
    contenders, refused = find_contenders([*models, *names], words_of(methods), words_of(heads), asked)
    for line in refused:
        click.echo(f"left out: {line}", err=True)
    rows = count(contenders)
    on_gpu = place.device.type == "cuda"
    batch_size, rounds = batch_size or (8 if on_gpu else 1), rounds or (10 if on_gpu else 3)
    measured, kernels = "not measured", None
    if not no_speed:
        kernels = measure(contenders, rows, place, batch_size, rounds, RunProgress().say)
        measured = (
            f"{_device_name(place.device)}, {place.precision}, batches of {batch_size}, median of {rounds} rounds"
        )
    if as_json:
        meaning = {"device": measured, "kernels": kernels, "memory": None if no_speed else memory_meaning(place)}
        meaning["dataset"] = dataset
        click.echo(json.dumps({**meaning, "left_out": refused, "rows": to_dicts(rows)}, indent=2))
    else:
        click.echo(_table(rows, not no_speed))
        click.echo(f"GFLOPs: 10⁹ multiply-adds of one view. Speed: {measured}")
        if kernels:
            click.echo(f"Kernels: {kernels}")
        if not no_speed:
            click.echo(f"Memory: {memory_meaning(place)}")
        for source in dict.fromkeys(row.published_source for row in rows if row.published_source):
            click.echo(f"Published: {source}")
    if csv_file:
        write_whole(Path(csv_file), to_csv(rows))
    if plot:
        from aim_fast.studies.comparison_plot import draw_comparison
        from aim_fast.training.drawing import drawing

        with drawing(Path(plot)):
            draw_comparison(rows, f"{dataset} models; {measured}", Path(plot))
    return 0


def _table(rows: list[Row], speed: bool) -> str:
    head = ["model", "frames", "params M", "trained M", "GFLOPs"]
    head += ["forward clips/s", "training clips/s", "memory MiB"] if speed else []
    lines = [[*head, "top-1", "published top-1", "published M, trained, GFLOPs"]]
    for row in rows:
        line = [
            row.model,
            str(row.frames),
            f"{row.params / 1e6:.1f}",
            f"{row.trainable / 1e6:.2f}",
            f"{row.gflops:.1f}",
        ]
        if speed and row.note:
            line += [row.note, "", ""]
        elif speed:
            line += [
                _rate(row.forward, row.forward_spread),
                _rate(row.train, row.train_spread),
                "–" if row.memory_mib is None else f"{row.memory_mib:.0f}",
            ]
        where = " ".join(filter(None, (row.published_dataset, row.published_views)))
        line.append("–" if row.top1 is None else f"{row.top1:.1f}")
        line.append("–" if row.published_top1 is None else f"{row.published_top1:.1f} ({where})")
        printed = (row.published_params, row.published_trainable, row.published_gflops)
        line.append(", ".join("–" if figure is None else str(figure) for figure in printed) if any(printed) else "–")
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        )
        for line in lines
    )


def _rate(value: float | None, spread: float | None) -> str:
    return "–" if value is None else f"{value:.3g} ±{100 * (spread or 0):.0f}%"


def _device_name(device: object) -> str:
    import os

    import torch

    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(str(device)))
    return f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
