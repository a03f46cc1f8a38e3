"""The layout of a clip's random numbers, and plans made before it had one: the same to the last bit."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from aim_fast.data.plan.clip_plan import Augmentation, plan_clip
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
