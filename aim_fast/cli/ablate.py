"""``aim-fast ablate``: the paper's ablations on any data set, as one job with a table at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aim_fast.cli.options import RecipeCommand, recipe_options, typed
from aim_fast.cli.study import OWN, demo_fields, make_demo, run_study, seeds_of
from aim_fast.training.recipe import FIELDS


@click.command("ablate", cls=RecipeCommand)
@click.option(
    "--study",
    required=True,
    metavar="NAME",
    help="rungs (frozen, fine-tuned, + spatial, + temporal, + joint, TimeSformer), positions, ratios, data, or "
    "methods, all that the trunk can be put under",
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
@recipe_options(name for name in FIELDS if name not in OWN)
def command(
    study: str,
    output: str | None,
    recipe: str | None,
    seeds: str | None,
    finetune_lr_factor: float,
    demo: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Train one recipe in several ways and put them in a table.

    Each cell is a run's folder below --output. The same command again goes on where an interrupted study stood, and
    does not repeat what is finished.

    \b
    aim-fast ablate --study rungs --dataset ssv2 --data-root DIR --weights ViT-B-16.pt --output runs/rungs
    aim-fast ablate --study rungs --demo
    """
    from aim_fast.errors import UsageError, nearest
    from aim_fast.studies.cells import METHODS, STUDIES, cells_of
    from aim_fast.training.progress import RunProgress
    from aim_fast.training.recipe_file import load_recipe
    from aim_fast.training.recipe_model import check_model_fields

    if study not in (*STUDIES, METHODS):
        raise UsageError(f"unknown study {study!r}; {nearest(study, (*STUDIES, METHODS))}")
    fields, progress = typed(options), RunProgress(quiet)
    demo = demo or not (fields.get("dataset") or recipe)
    if demo:
        folder = Path(output or f"runs/ablate-{study}-demo")
        fields, recipe = demo_fields(fields, folder), recipe or "demo_ablation"
    base = load_recipe(recipe, fields)
    if not demo:
        folder = Path(output or f"runs/ablate-{study}-{base.data.dataset}")
    check_model_fields(base.model.model, fields, base.model.head)
    chosen = seeds_of(seeds, base.run.seed)

    from aim_fast.studies.ablation import Study

    if study == METHODS:
        from aim_fast.studies.method_cells import Budget, method_cells, methods_on
        from aim_fast.studies.row_weights import check_row_weights

        trunk = fields.pop("model", base.model.model)
        words = methods_on(trunk, texts=not demo)
        base, cells = method_cells(words, fields | {"model": trunk}, recipe, Budget(), progress.say)
        if not demo:
            check_row_weights(base, cells, progress.say)
    else:
        cells = cells_of(study, base, finetune_lr_factor)
        for cell in cells:
            check_model_fields(cell.changes.get("model", base.model.model), cell.changes)
    work = Study(study, base, folder, chosen, cells)
    if demo:
        make_demo(folder / "demo", base, progress)
    return run_study(work, progress, quiet)
