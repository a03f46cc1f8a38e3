"""A step's loss is read without waiting for the step after it."""

import torch

from aim_fast.training.arriving import Arriving
from tests.gpu.under_way import comes_before_the_work_under_way


def test_a_value_is_there_before_what_was_launched_after_it():
    scalars = [torch.full((), number, device="cuda").square() for number in (3, 1.5)]
    arriving = [Arriving(scalar) for scalar in scalars]
    assert comes_before_the_work_under_way(lambda: [value.item() for value in arriving])
    assert [value.item() for value in arriving] == [9, 2.25]
    assert not comes_before_the_work_under_way(lambda: scalars[0].item())
