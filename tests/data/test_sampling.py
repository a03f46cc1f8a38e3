"""Frame sampling against the published implementation's indices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aim_fast.data.plan.sampling import Sampling, frame_indices
from aim_fast.errors import UsageError

CASES = json.loads((Path(__file__).parents[1] / "golden" / "sampling.json").read_text())


def sampling_of(case: dict) -> Sampling:
    return Sampling(case["clip_len"], None if case["uniform"] else case["frame_interval"], case["num_clips"])


def test_all_published_cases_are_here():
    assert len(CASES) == 184


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c['num_frames']}-{c['clip_len']}x{c['frame_interval']}-{c['num_clips']}"
)
def test_evaluation_takes_the_published_frames(case):
    sampling = sampling_of(case)
    found = [i for clip in range(case["num_clips"]) for i in frame_indices(sampling, case["num_frames"], clip=clip)]
    assert found == case["test_indices"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["uniform"]], ids=lambda c: f"{c['num_frames']}-{c['clip_len']}"
)
def test_uniform_training_draws_reach_both_ends_of_the_published_support_and_no_further(case):
    random = np.random.default_rng(0)
    draws = [
        frame_indices(sampling_of(case), case["num_frames"], draws=random.random(case["clip_len"])) for _ in range(2000)
    ]
    widest = max(b - a for a, b in zip(case["train_min"], case["train_max"]))
    if widest < 40:  # each value of a segment then comes up among 2000 draws
        assert np.min(draws, axis=0).tolist() == case["train_min"]
        assert np.max(draws, axis=0).tolist() == case["train_max"]
    nearly_one = [np.nextafter(1, 0)] * case["clip_len"]
    assert frame_indices(sampling_of(case), case["num_frames"], draws=[0.0] * case["clip_len"]) == case["train_min"]
    assert frame_indices(sampling_of(case), case["num_frames"], draws=nearly_one) == case["train_max"]


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if not case["uniform"] and case["num_clips"] == 1],
    ids=lambda c: str(c["num_frames"]),
)
def test_dense_training_starts_cover_the_published_support(case):
    sampling, n = sampling_of(case), case["num_frames"]
    first, last = (frame_indices(sampling, n, draws=[u]) for u in (0.0, np.nextafter(1, 0)))
    if isinstance(case["train_start_support"], list):
        assert [first[0], last[0]] == case["train_start_support"]
        assert first == list(range(first[0], first[0] + sampling.num_frames * sampling.interval, sampling.interval))
    else:
        assert first == last == [i * sampling.interval % n for i in range(sampling.num_frames)]


def test_further_uniform_clips_differ_and_stay_in_their_segments():
    sampling = Sampling(8, clips=3)
    clips = [frame_indices(sampling, 100, clip=clip) for clip in range(3)]
    assert np.all(np.diff(clips, axis=0) > 0)
    assert min(map(min, clips)) >= 0
    assert max(map(max, clips)) <= 99


@pytest.mark.parametrize(
    "options",
    [{"num_frames": 0}, {"num_frames": 8, "interval": 0}, {"num_frames": 8, "crops": 2}, {"num_frames": 8, "clips": 0}],
)
def test_impossible_sampling_is_a_usage_error(options):
    with pytest.raises(UsageError):
        Sampling(**options)
