"""``aim-fast demo``: a frozen image Transformer learns motion, on this machine, in a few minutes, from nothing."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed

MADE = ("data", "trunk.safetensors", "aim", "frozen", "summary.json", "curves.png", "confusion.png", "report.html")


@click.command("demo", cls=RecipeCommand)
@click.option("--output", default="demo", show_default=True, metavar="DIR", help="folder of all that the demo makes")
@click.option("--overwrite", is_flag=True, help="remove what an earlier demo made in DIR first")
@click.option("--clips", default=1280, show_default=True, type=click.IntRange(16), help="training clips to make")
@click.option("--stills", default=8000, show_default=True, type=click.IntRange(64), help="still images to make")
@click.option("--still-steps", default=1000, show_default=True, type=click.IntRange(1), help="training steps on stills")
@recipe_options(("epochs", "seed", "device", "precision", "workers"), defaults="demo")
def command(output: str, overwrite: bool, clips: int, stills: int, still_steps: int, **options: Any) -> None:
    """Show what this project does, without data, weights or a GPU.

    Makes a small data set of moving objects in Something-Something v2's layout, whose classes no single frame tells
    apart; trains an image Transformer on still objects; freezes it; trains AIM's adapters on it with
    `train --dataset ssv2`, and beside them the frozen space-only rung; evaluates both and predicts one file.
    """
    from aim_fast.errors import UsageError

    folder, began = Path(output), time.perf_counter()
    earlier = [folder / name for name in MADE if (folder / name).exists()]
    if earlier and not overwrite:
        names = ", ".join(path.name for path in earlier)
        raise UsageError(f"{folder}: holds {names}; add --overwrite to remove these first, or give another --output")
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    from aim_fast.api import predict
    from aim_fast.demo.demo_set import DATA, TRUNK, held_out_clips, make_clips, make_trunk
    from aim_fast.demo.moving_objects import MOTIONS
    from aim_fast.files import write_whole
    from aim_fast.report import PAGE, write_page
    from aim_fast.training.devices import join_processes
    from aim_fast.training.drawing import drawing
    from aim_fast.training.loop import train
    from aim_fast.training.progress import RunProgress
    from aim_fast.training.recipe_file import load_recipe
    from aim_fast.training.report import evaluate_run
    from aim_fast.training.run_folder import absolute_paths

    progress = RunProgress()
    fields = typed(options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}); give another --output") from None
    held_out = held_out_clips(clips)
    recipe = load_recipe("demo", {"data_root": str(folder / DATA), "weights": str(folder / TRUNK), **fields})

    progress.say(f"1/5 writing {clips} + {held_out} clips of moving objects to {folder / 'data'}")
    make_clips(folder, clips, recipe.run.seed, progress)

    progress.say(f"2/5 training an image Transformer on {stills} still objects")
    with join_processes(recipe.run.device, recipe.run.precision) as place:
        scores = make_trunk(folder, recipe.model.model, place, stills, still_steps, recipe.run.seed, progress)
    progress.say(
        f"    it names {100 * scores['colour']:.0f} % of colours, {100 * scores['shape']:.0f} % of shapes right"
    )

    rungs = {"aim": recipe, "frozen": recipe.replace(adapters=())}
    titles = {"aim": "AIM: adapters on the frozen trunk", "frozen": "frozen space-only: linear probe"}
    top1, seconds, trained = {}, {}, {}
    for number, (name, rung) in enumerate(rungs.items(), start=3):
        progress.say(f"{number}/5 {titles[name]}")
        start = time.perf_counter()
        train(absolute_paths(rung.replace(output=str(folder / name))))
        seconds[name] = time.perf_counter() - start
        report = evaluate_run(str(folder / name), "validation", fields)
        top1[name] = report.scores.summary()["top1"]
        trained[name] = _trained_values(folder / name)
        if name == "aim":
            with drawing(folder / "confusion.png"):
                report.draw(folder / "confusion.png")
            with drawing(folder / PAGE):
                write_page(report, folder / PAGE)
    with drawing(folder / "curves.png"):
        write_whole(folder / "curves.png", (folder / "aim" / "curves.png").read_bytes())

    progress.say("5/5 predicting one held-out file")
    entry = json.loads((folder / "data" / "validation.json").read_text())[0]
    video = folder / "data" / "20bn-something-something-v2" / f"{entry['id']}.webm"
    prediction = predict(folder / "aim", video, 3, device=fields.get("device"), precision=fields.get("precision"))
    click.echo(f"{video}: {entry['label']}")
    for label, probability in zip(prediction.labels, prediction.probabilities):
        click.echo(f"  {100 * probability:5.1f} %  {label}")

    chance = 1 / len(MOTIONS)
    total = time.perf_counter() - began
    click.echo(f"\n{'rung':<36}{'trained':>9}{'top-1':>9}{'seconds':>9}")
    for name, title in titles.items():
        click.echo(f"{title:<36}{trained[name]:>9,}{100 * top1[name]:>7.1f} %{seconds[name]:>9.0f}")
    click.echo(f"{'chance':<36}{'':>9}{100 * chance:>7.1f} %")
    click.echo(f"{held_out} held-out clips, {total:.0f} s in all; curves and mistakes: {folder / PAGE}")
    summary = {"aim_top1": top1["aim"], "frozen_top1": top1["frozen"], "chance": chance, "seconds": round(total, 1)}
    write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _trained_values(folder: Path) -> int:
    from aim_fast.training.checkpoint import find_checkpoint, read_checkpoint

    return sum(tensor.numel() for tensor in read_checkpoint(find_checkpoint(folder)).tensors.values())
