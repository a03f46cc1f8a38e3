"""The ablations of the AIM paper as lists of cells: what each changes in a recipe, and what was published for it.

    rungs       frozen space-only, fine-tuned space-only, + spatial, + temporal, + joint (AIM), TimeSformer
    positions   adapters in the bottom half, the top half, every other block, all
    ratios      adapters of 1/16, 1/8, 1/4, 1/2 of the width
    data        1, 10, 50 and 100 % of each class's training clips

Source: Yang et al., AIM, ICLR 2023, its tables of ablations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aim_fast.models.published import published_results
from aim_fast.models.registry import MODELS
from aim_fast.training.recipe import Recipe

STUDIES = ("rungs", "positions", "ratios", "data")  # those of the paper
METHODS = "methods"
# What the published figures of a study were measured on.
PUBLISHED_ON = {
    "rungs": "Something-Something v2, ViT-B/16 of ImageNet-21k, 8 frames, 1x3 views",
    "positions": "Kinetics-400, CLIP ViT-B/16, 8 frames, 3x1 views",
    "ratios": "Kinetics-400, CLIP ViT-B/16, 8 frames, 3x1 views",
    "data": "Kinetics-400, CLIP ViT-B/16, 8 frames, 3x1 views",
    METHODS: "the same structure on the same data set, by its authors' views",
}


@dataclass(frozen=True)
class Cell:
    """One row of a study: ``key`` names its folder, ``changes`` are recipe fields, ``published`` top-1 in percent;
    ``recipe`` says where they are from, when it is not the study's."""

    key: str
    title: str
    changes: dict[str, Any]
    published: float | None = None
    recipe: str | None = None


def cells_of(study: str, recipe: Recipe, finetune_lr_factor: float) -> list[Cell]:
    """The cells of one of STUDIES for a recipe, in the order of their table.

    Cells in which the image Transformer itself trains take ``finetune_lr_factor`` of the learning rate there.
    """
    return {"rungs": _rungs, "positions": _positions, "ratios": _ratios, "data": _data}[study](
        recipe, finetune_lr_factor
    )


def _rungs(recipe: Recipe, finetune_lr_factor: float) -> list[Cell]:
    whole = {"tune": "all", "backbone_lr_factor": finetune_lr_factor}
    published = {row.rung: row.top1 for row in published_results() if row.dataset == "ssv2" and row.rung}
    rows: list[tuple[str, str, dict[str, Any]]] = [
        ("frozen", "frozen space-only", {"adapters": ()}),
        ("finetuned", "fine-tuned space-only", {"adapters": (), **whole}),
        # without a temporal embedding, or it would not be a model of space alone
        ("spatial", "+ spatial adaptation", {"adapters": ("spatial",), "temporal_place": "frozen"}),
        ("temporal", "+ temporal adaptation", {"adapters": ("spatial", "temporal")}),
        ("joint", "+ joint adaptation", {"adapters": ("spatial", "temporal", "joint")}),
    ]
    cells = [Cell(key, title, changes, published.get(title)) for key, title, changes in rows]
    timesformer = recipe.model.model.replace("aim_vit_", "timesformer_")
    if timesformer != recipe.model.model and timesformer in MODELS:
        top1 = next(row.top1 for row in published_results() if (row.model[:11], row.dataset) == ("timesformer", "ssv2"))
        cells.append(Cell("timesformer", "TimeSformer, fine-tuned", {"model": timesformer, **whole}, top1))
    return cells


def _positions(recipe: Recipe, finetune_lr_factor: float) -> list[Cell]:
    rows = (("bottom", "bottom half"), ("top", "top half"), ("alternate", "every other block"), ("all", "all blocks"))
    published = {"all blocks": _kinetics()} | {row.rung: row.top1 for row in published_results() if row.rung}
    return [Cell(key, title, {"adapter_layers": (key,)}, published.get(title)) for key, title in rows]


def _ratios(recipe: Recipe, finetune_lr_factor: float) -> list[Cell]:
    published = {0.25: _kinetics()} | {
        row.overrides["adapter_ratio"]: row.top1 for row in published_results() if "adapter_ratio" in row.overrides
    }
    return [
        Cell(f"ratio-1-{share}", f"1/{share} of the width", {"adapter_ratio": 1 / share}, published.get(1 / share))
        for share in (16, 8, 4, 2)
    ]


def _data(recipe: Recipe, finetune_lr_factor: float) -> list[Cell]:
    model = "timesformer_b16_clip" if recipe.model.model.startswith("timesformer") else "aim_vit_b16_clip"
    published = {100.0: _kinetics(model)} | {
        row.data_percent: row.top1 for row in published_results() if row.model == model and row.data_percent < 100
    }
    return [
        Cell(f"data-{percent}", f"{percent} % of the clips", {"data_share": percent / 100}, published.get(percent))
        for percent in (1, 10, 50, 100)
    ]


def _kinetics(model: str = "aim_vit_b16_clip") -> float | None:
    """Published top-1 of the whole model on all of Kinetics-400, 8 frames."""
    rows = (row for row in published_results() if (row.model, row.dataset) == (model, "kinetics400"))
    return next(row.top1 for row in rows if (row.frames, row.data_percent) == (8, 100) and not row.overrides)
