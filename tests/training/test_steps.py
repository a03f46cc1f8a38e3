"""The arithmetic of steps: every clip of an epoch belongs to exactly one step, however it is split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_fast.errors import UsageError
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.steps import Steps, step_seed

small = st.integers(1, 7)


@given(clips=st.integers(1, 200), batch_size=small, world=small, accumulate=small, epoch=st.integers(0, 3))
def test_the_steps_of_an_epoch_cover_its_clips_once(clips, batch_size, world, accumulate, epoch):
    steps = Steps(clips, batch_size, world, accumulate)
    numbers = range(epoch * steps.per_epoch, (epoch + 1) * steps.per_epoch)
    assert sum(steps.clips_of(step) for step in numbers) == clips
    assert all(1 <= steps.batches_of(step) <= accumulate for step in numbers)
    batches = sum(steps.batches_of(step) for step in numbers)
    assert batches == -(-clips // (batch_size * world))
    assert [steps.first_batch(step) for step in numbers] == [i * accumulate for i in range(len(numbers))]


@pytest.mark.parametrize(
    ("batch_size", "world", "expected"), [(8, 8, 1), (8, 1, 8), (4, 2, 8), (64, 1, 1), (128, 1, 1)]
)
def test_gradients_are_accumulated_to_the_total(batch_size, world, expected):
    recipe = load_recipe("ssv2_b16_8f", {"batch_size": batch_size})
    assert Steps.of(recipe, 1000, world).accumulate == expected


def test_accumulate_wins_and_no_total_means_one():
    recipe = load_recipe("ssv2_b16_8f", {"accumulate": 3})
    assert Steps.of(recipe, 1000, 1).accumulate == 3
    assert Steps.of(load_recipe("finetune_b16", {}), 1000, 1).accumulate == 1


def test_a_total_that_cannot_be_reached_is_refused():
    with pytest.raises(UsageError, match="no multiple of 12 clips x 2 processes"):
        Steps.of(load_recipe("ssv2_b16_8f", {"batch_size": 12}), 1000, 2)


def test_seeds_differ_for_any_difference_and_are_stable():
    assert len({step_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}) == 125
    assert step_seed(0, 1, 2, 3) == 5735612403627336365
    assert 0 <= step_seed(1) < 2**63
