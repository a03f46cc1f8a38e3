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


@pytest.mark.parametrize(("frames", "clips"), [(300, 3), (301, 4), (128, 2), (129, 5), (100, 3), (300, 1)])
def test_views_may_be_spread_from_the_first_start_to_the_last(frames, clips):
    sampling = Sampling(8, 16, clips=clips, ends=True)
    found = [frame_indices(sampling, frames, clip=clip) for clip in range(clips)]
    last = frames - 128
    if clips == 1 or last < 0:
        plain = Sampling(8, 16, clips=clips)
        assert found == [frame_indices(plain, frames, clip=clip) for clip in range(clips)]
    else:
        starts = [one[0] for one in found]
        assert starts == [round(clip * last / (clips - 1)) for clip in range(clips)]
        assert (starts[0], starts[-1]) == (0, last)
        assert all(np.diff(one).tolist() == [16] * 7 for one in found)


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


@pytest.mark.parametrize("n", [8, 37, 64, 5])
def test_equal_segments_share_no_frame_and_are_tested_at_their_middles(n):
    """TSN: n frames in T segments of n/T; one frame drawn of each, the middle in evaluation."""
    sampling = Sampling(8, equal=True, clips=2)
    rng = np.random.default_rng(n)
    drawn = np.array([frame_indices(sampling, n, draws=rng.random(8).tolist()) for _ in range(500)])
    edges = np.arange(9) * n / 8
    assert (drawn >= np.floor(edges[:-1])).all()
    assert (drawn < np.ceil(edges[1:])).all()
    if n % 8 == 0:
        seen = [set(column) for column in drawn.T]
        assert sorted(frame for one in seen for frame in one) == list(range(n))
    assert frame_indices(Sampling(8, equal=True), n) == [int((i + 0.5) * n / 8) for i in range(8)]
    first, second = (frame_indices(sampling, n, clip=clip) for clip in range(2))
    assert all(a <= b for a, b in zip(first, second))
    assert first == [int((i + 0.25) * n / 8) for i in range(8)]
