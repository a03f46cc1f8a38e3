"""What ``aim-fast tune`` does and shows: the kernels chosen for the training step of a recipe, with their figures."""

from __future__ import annotations

from dataclasses import asdict
from io import StringIO
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from aim_fast.models.registry import create_model
from aim_fast.training.devices import single_place
from aim_fast.training.first_start import check_place, step_calls
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_model import model_options
from aim_fast.training.trained_model import move_to_place
from aim_fast.tuning.record import content_of
from aim_fast.tuning.tuning import Tuning, tune

_CLASSES = ("one", "two")  # how many there are decides nothing about the kernels


def tune_recipe(recipe: Recipe, anew: bool = False) -> Tuning:
    """Chooses for a step of ``recipe``'s model over pixels, with random weights. Raises UsageError without a GPU."""
    place = single_place(recipe.run.device, recipe.run.precision)
    check_place(place)
    torch.manual_seed(0)
    model = create_model(recipe.model.model, **model_options(recipe, len(_CLASSES), _CLASSES)).train()
    move_to_place(model, place)
    side = (model.img_size, model.img_size, 3)
    frames = torch.zeros(
        recipe.optimisation.batch_size, model.num_frames, *side, dtype=torch.uint8, device=place.device
    )
    return tune(step_calls(model, [frames], place), place.device, anew)


def figures(tuning: Tuning) -> dict[str, Any]:
    """For JSON: the card, and of every call all candidates, with the seconds of a call."""
    calls = []
    for call, choice in tuning.choices.items():
        content = content_of(choice) | {"call": str(call), "count": tuning.counts.get(call, 0), "chosen": choice.name}
        calls.append({**content, "shapes": [[launch.kernel, *shape] for launch, shape in choice.shapes.items()]})
    card = {"card": asdict(tuning.card), "seconds": round(tuning.seconds, 1), "gain": round(tuning.gain, 4)}
    return {**card, "lines": tuning.lines, "calls": calls}


def table(tuning: Tuning) -> str:
    """One row a call: what was chosen, its time beside the committed kernel's, and its error beside plain torch's."""
    heads = ("operator", "first operand", "×", "chosen", "ms", "committed", "error", "plain's")
    shown = Table(*heads, title=_title(tuning))
    for call, choice in tuning.choices.items():
        taken, default = choice.taken, choice.default
        shown.add_row(
            *(call.operator, str(call.operands[0]), str(tuning.counts.get(call, 0)), choice.name),
            *(f"{1e3 * x.seconds:.3f}" if x and x.seconds else "" for x in (taken, default)),
            *((f"{taken.error:.1e}", f"{taken.plain:.1e}") if taken else ("", "")),
        )
    text = StringIO()
    Console(file=text, width=150).print(shown)
    return text.getvalue().rstrip()


def _title(tuning: Tuning) -> str:
    return f"kernels chosen for {tuning.card.name}, torch {tuning.card.torch}, triton {tuning.card.triton}"
