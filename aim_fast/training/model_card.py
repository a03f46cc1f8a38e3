"""The card of a run that is shared: what it was trained on and how, what it scores, and the command to use it.

Its head is the metadata that the Hugging Face hub reads, made by ``huggingface_hub``; what nobody said is left out.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_fast.errors import UsageError, abridged
from aim_fast.models.identity import Identity
from aim_fast.printable import printable
from aim_fast.training.metrics import read_metrics
from aim_fast.training.recipe import Recipe

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

__all__ = ["best_figures", "model_card"]

_CLASSES = 400  # most that are named one by one
_FIGURES = {"top1": "top-1", "top5": "top-5", "mean_class": "mean-class top-1"}


def best_figures(folder: Path | None) -> dict[str, Any]:
    """The validation of a run that had the best top-1, as its metrics have it; nothing where there is none."""
    rows = [row for row in read_metrics(folder) if row.get("kind") == "eval" and "top1" in row] if folder else []
    return max(rows, key=lambda row: row["top1"], default={})


def model_card(
    repo: str, recipe: Recipe, identity: Identity, figures: dict[str, Any], licence: str | None, with_trunk: bool
) -> ModelCard:
    """The card; raises UsageError for a licence that no hub could read."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    if licence is not None and (not licence.strip() or printable(licence) != licence or len(licence) > 60):
        raise UsageError(f"--licence {licence!r}: give the hub's word for one, such as mit, apache-2.0 or cc-by-nc-4.0")
    dataset = printable(recipe.data.dataset or "a data set that was not said")
    results = [
        EvalResult(
            task_type="video-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(float(figures[key]), 4),
        )
        for key, name in _FIGURES.items()
        if isinstance(figures.get(key), (int, float))
    ]
    head = ModelCardData(
        license=licence,
        library_name="aim-fast",
        pipeline_tag="video-classification",
        tags=["aim-fast", "video-classification", *([] if with_trunk else ["adapter"])],
        model_name=repo.rpartition("/")[2],
        eval_results=results or None,
    )
    return ModelCard(f"---\n{head.to_yaml()}\n---\n{_body(repo, recipe, identity, figures, with_trunk)}")


def _body(repo: str, recipe: Recipe, identity: Identity, figures: dict[str, Any], with_trunk: bool) -> str:
    data, optimisation = recipe.data, recipe.optimisation
    weights = printable(identity.weights) or "weights that were not said"
    folder = shlex.quote(repo.rpartition("/")[2])
    given = "" if with_trunk or ":" in weights else " --weights FILE"
    lines = [
        f"# {repo.rpartition('/')[2]}",
        "",
        f"`{identity.model}` with {len(identity.classes)} classes: "
        + (
            "the whole model."
            if with_trunk
            else f"what was trained, on the frozen trunk of `{weights}`, which is not here."
        )
        + f" The trunk's SHA-256 is `{identity.trunk_sha256 or 'unknown'}`.",
        "",
        "## Use",
        "",
        f"    aim-fast pull {shlex.quote(repo)} --output {folder}",
        f"    aim-fast predict {folder} VIDEO{given}",
        f"    aim-fast eval {folder} --dataset {shlex.quote(printable(data.dataset or 'NAME'))} --data-root DIR{given}",
        "",
        "## Data and recipe",
        "",
        f"- data set: {printable(data.dataset or 'not said')}",
        f"- {data.frames} frames a clip, "
        + (f"every {data.interval} frames" if data.interval else "over the whole video"),
        f"- {optimisation.epochs} epochs of {optimisation.batch_size} clips a step and process, learning rate "
        f"{optimisation.lr:g}, {optimisation.optimizer}",
        "- every field is in `recipe.yaml`",
        "",
        "## Figures",
        "",
    ]
    named = {name: figures[key] for key, name in _FIGURES.items() if isinstance(figures.get(key), (int, float))}
    if named:
        lines += [f"- {name}: {100 * value:.2f} %" for name, value in named.items()]
        lines.append(
            f"- on {figures.get('videos', 'the')} validation videos, one centre view, epoch {figures.get('epoch')}"
        )
    else:
        lines.append("The run has no validation to tell of.")
    names = [f"`{printable(name).replace('`', chr(39))}`" for name in identity.classes]
    return "\n".join([*lines, "", "## Classes", "", abridged(names, _CLASSES), ""])
