"""``aim-fast ablate``: the paper's ablations on any data set, as one job with a table at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed
from aim_fast.training.recipe import FIELDS

# what a study's cells set themselves, or the study does
_OWN = ("output", "seed", "features", "cache_features", "cache_dtype")
SCENE_BIAS = 0.4


@click.command("ablate", cls=RecipeCommand)
@click.option(
    "--study",
    required=True,
    metavar="NAME",
    help="rungs (frozen, fine-tuned, + spatial, + temporal, + joint, TimeSformer), positions, ratios or data",
)
@click.option("--output", metavar="DIR", help="folder of the study; runs/ablate-STUDY-DATASET when not given")
@click.option("--recipe", metavar="NAME|FILE", help="a shipped recipe or a YAML file, changed in each cell")
@click.option("--seeds", metavar="LIST", help="seeds that every cell is trained with, such as 0,1,2")
@click.option(
    "--finetune-lr-factor",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="factor on the learning rate of an image Transformer that trains",
)
@click.option("--demo", is_flag=True, help="on moving objects and a trunk made here; so without --dataset too")
@click.option("--quiet", is_flag=True, help="no progress on stderr")
@recipe_options(name for name in FIELDS if name not in _OWN)
def command(
    study: str,
    output: str | None,
    recipe: str | None,
    seeds: str | None,
    finetune_lr_factor: float,
    demo: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train one recipe in several ways and put them in a table.

    Each cell is a run's folder below --output. The same command again goes on where an interrupted study stood, and
    does not repeat what is finished.

    \b
    aim-fast ablate --study rungs --dataset ssv2 --data-root DIR --weights ViT-B-16.pt --output runs/rungs
    aim-fast ablate --study rungs --demo
    """
    from aim_fast.errors import UsageError, nearest
    from aim_fast.studies.cells import STUDIES
    from aim_fast.training.progress import RunProgress
    from aim_fast.training.recipe_file import load_recipe
    from aim_fast.training.recipe_model import check_model_fields

    if study not in STUDIES:
        raise UsageError(f"unknown study {study!r}; {nearest(study, STUDIES)}")
    fields = typed(options)
    progress = RunProgress(quiet)
    demo = demo or not (fields.get("dataset") or recipe)
    if demo:
        if named := [name for name in ("dataset", "data_root", "weights") if name in fields]:
            raise UsageError(f"--demo makes its own data and trunk: leave --{named[0].replace('_', '-')} out")
        folder = Path(output or f"runs/ablate-{study}-demo")
        resolved = load_recipe(recipe or "demo_ablation", fields)
        resolved = resolved.replace(
            data_root=str(folder / "demo" / "data"), weights=str(folder / "demo" / "trunk.safetensors")
        )
    else:
        resolved = load_recipe(recipe, fields)
        folder = Path(output or f"runs/ablate-{study}-{resolved.data.dataset}")
    check_model_fields(resolved.model.model, fields, resolved.model.head)
    chosen = _seeds(seeds, resolved.run.seed)

    from aim_fast.studies.ablation import Study

    work = Study(study, resolved, folder, chosen, finetune_lr_factor)
    if demo:
        _make_demo(folder / "demo", resolved, progress)
    if not work.run(progress.say, quiet):
        click.echo(f"{folder}: stopped by SIGTERM and saved; the same command goes on with it")
        return
    click.echo(work.text())
    click.echo(f"{folder}: table.txt, table.csv, table.json, table.png")


def _seeds(text: str | None, default: int) -> list[int]:
    from aim_fast.errors import UsageError

    if text is None:
        return [default]
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) != len(words):
        raise UsageError(f"--seeds {text!r} are not different whole numbers: write for example 0,1,2")
    return [int(word) for word in words]


def _make_demo(folder: Path, recipe: Any, progress: Any) -> None:
    """Makes the demo's clips and trunk once; what an interrupted study left half made is made again."""
    import shutil

    from aim_fast.demo.demo_set import DATA, TRUNK, make_clips, make_trunk
    from aim_fast.errors import UsageError
    from aim_fast.training.devices import join_processes

    if (folder / TRUNK).exists():
        return
    shutil.rmtree(folder / DATA, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}); give another --output") from None
    progress.say(f"writing clips of moving objects to {folder / DATA}, and training an image Transformer on still ones")
    make_clips(folder, 1280, 0, progress, SCENE_BIAS)
    with join_processes(recipe.run.device, recipe.run.precision) as place:
        make_trunk(folder, recipe.model.model, place, 8000, 1000, 0, progress)
