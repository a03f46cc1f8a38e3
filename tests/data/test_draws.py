"""The layout of a clip's random numbers, and plans made before it had one: the same to the last bit."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from aim_fast.data.plan.augmentation import Augmentation
from aim_fast.data.plan.clip_plan import plan_clip
from aim_fast.data.plan.draws import Draws
from aim_fast.data.plan.randaugment import OPERATIONS
from aim_fast.data.plan.sampling import Sampling

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "plans.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_plans_are_those_of_before(case):
    augmentation = Augmentation(**case["augmentation"]) if case["augmentation"] is not None else None
    sampling = Sampling(**case["sampling"])
    plan = plan_clip(**case["clip"], sampling=sampling, augmentation=augmentation)
    assert facts(plan) == case["plan"]


def facts(plan) -> dict:
    """The plan as JSON holds it: every number in full."""
    return json.loads(json.dumps(asdict(plan), default=lambda array: array.tolist()))


def test_every_number_that_is_drawn_decides_one_thing():
    spans = {name: value for name, value in vars(Draws).items() if not name.startswith("_") and name != "count"}
    numbers = range(Draws.count)
    places = [place for span in spans.values() for place in (numbers[span] if isinstance(span, slice) else [span])]
    assert sorted(places) == [place for place in numbers if place not in (46, 47)]
    assert len(numbers[Draws.randaug]) == len(OPERATIONS) + 3 * len(OPERATIONS)
    assert len(numbers[Draws.box]) % 4 == len(numbers[Draws.erase]) % 4 == 0
