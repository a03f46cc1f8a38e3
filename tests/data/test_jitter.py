"""Colour jitter and random grey against torchvision's own: each change, all in the drawn order, and what is drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from aim_fast.data.pixels.clip_input import ClipInput
from aim_fast.data.plan.augmentation import Augmentation
from aim_fast.data.plan.clip_plan import ClipPlan, plan_clip
from aim_fast.data.plan.jitter import JITTERED
from aim_fast.data.plan.randaugment import Kind
from aim_fast.data.plan.sampling import Sampling
from aim_fast.errors import UsageError

pytest.importorskip("nvidia.dali")
from aim_fast.data.pixels.batch_pipeline import DevicePipeline, HostPipeline
from aim_fast.data.pixels.dali_pipelines import augment_inputs, augmenting

SIZE = 48
STRENGTHS = (0.4, 0.4, 0.2, 0.1)
THEIRS = dict(zip(JITTERED, (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)))
# Levels that a pixel may be apart after one change: rounding where torchvision truncates, and twice where it does so
# twice (contrast: the mean and the blend).
APART = {Kind.LINE: 1, Kind.CONTRAST: 2, Kind.COLOR: 2, Kind.HUE: 2}


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """uint8 [3, S, S, 3]: every pixel of any colour, and patches without colour."""
    found = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    found[:, :8, :8] = found[:, :8, :8, :1]
    return found


def made(frames: np.ndarray, plans: list[ClipPlan], augmentation: Augmentation) -> np.ndarray:
    """uint8 [B, T, S, S, 3]: what the pipeline makes of the frames by each plan."""
    clips = [ClipInput(plan, "", frames) for plan in plans]
    pipeline = augmenting(SIZE, augmentation, batch_size=len(clips), threads=2)
    pipeline.start(augment_inputs(clips, [frames for _ in clips], augmentation))
    return torch.from_dlpack(pipeline.wait().as_tensor()).clone().numpy()


def plan_of(kinds: list[int], values: list[float]) -> ClipPlan:
    whole, parameters = np.arange(3, dtype=np.int32), np.zeros((len(kinds), 36), np.float32)
    parameters[:, 31] = values
    return ClipPlan(whole, whole, (0, 0, 1, 1), randaug=(np.array(kinds, np.int32), parameters))


def as_torchvision(frames: np.ndarray, plan: ClipPlan) -> np.ndarray:
    """The plan's changes, in its order, by torchvision's functions on uint8."""
    assert plan.randaug is not None
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for kind, parameters in zip(*plan.randaug):
        if kind:
            video = THEIRS[Kind(kind)](video, float(parameters[31]))
    return video.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("kind", JITTERED, ids=lambda kind: kind.name.lower())
def test_each_change_is_torchvisions(kind, frames):
    values = [-0.5, -0.1, 0.0, 0.03, 0.25, 0.5] if kind is Kind.HUE else [0.0, 0.6, 0.95, 1.0, 1.2, 1.9]
    plans = [plan_of([kind], [value]) for value in values]
    for plan, found in zip(plans, made(frames, plans, Augmentation(randaug=(1, 7)))):
        apart = np.abs(found.astype(int) - as_torchvision(frames, plan))
        assert apart.max() <= APART[kind], plan.randaug[1][0, 31]
        assert apart.mean() <= 1


def test_all_changes_in_the_drawn_order_are_torchvisions(frames):
    augmentation = Augmentation(jitter=STRENGTHS, jitter_prob=0.8, grayscale=0.2)
    options = {"sampling": Sampling(3), "augmentation": augmentation, "img_size": SIZE, "seed": 3}
    plans = [plan_clip(3, SIZE, SIZE, index=index, **options) for index in range(24)]
    whole = [ClipPlan(np.arange(3, dtype=np.int32), plan.order * 0, plan.box, randaug=plan.randaug) for plan in plans]
    for plan, found in zip(whole, made(frames, whole, augmentation)):
        apart = np.abs(found[0].astype(int) - as_torchvision(frames, plan)[0])
        assert apart.max() <= 8  # four roundings, each stretched by the changes behind it
        assert apart.mean() < 2


def test_what_is_drawn_is_what_torchvision_draws():
    """Orders, ranges and shares, over many clips, against ``ColorJitter.make_params`` and the probabilities."""
    augmentation = Augmentation(jitter=STRENGTHS, jitter_prob=0.8, grayscale=0.2)
    options = {"sampling": Sampling(3), "augmentation": augmentation, "img_size": SIZE}
    layers = [plan_clip(9, 64, 64, index=index, **options).randaug for index in range(4000)]
    kinds = np.stack([kind for kind, _ in layers])
    jittered = kinds[:, 0] != 0
    assert 0.78 < jittered.mean() < 0.82
    assert 0.18 < (kinds[:, 4] == Kind.COLOR).mean() < 0.22
    assert {tuple(row) for row in kinds[jittered][:, :4]} == set(itertools.permutations(JITTERED))
    transform = v2.ColorJitter(*STRENGTHS)
    ranges = (transform.brightness, transform.contrast, transform.saturation, transform.hue)
    parameters = np.stack([values for _, values in layers])[jittered][:, :4, 31]
    for kind, (low, high) in zip(JITTERED, ranges):
        values = parameters[kinds[jittered][:, :4] == kind]
        assert low <= values.min() < low + 0.01 * (high - low) + 1e-6
        assert high - 0.01 * (high - low) - 1e-6 < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.03 * (high - low)


def test_a_strength_of_none_leaves_its_change_out():
    augmentation = Augmentation(jitter=(0.5, 0, 0, 0))
    options = {"sampling": Sampling(3), "augmentation": augmentation, "img_size": SIZE}
    for index in range(20):
        kinds, _ = plan_clip(9, 64, 64, index=index, **options).randaug
        assert sorted(kinds) == [0, 0, 0, Kind.LINE]


def test_jitter_leaves_the_other_draws_as_they_were_and_comes_behind_randaugment():
    options = {"sampling": Sampling(3), "img_size": SIZE}
    plain, drawn = (
        plan_clip(9, 64, 64, augmentation=Augmentation(flip=0.5, randaug=(2, 9), erasing=1.0, **jitter), **options)
        for jitter in ({}, {"jitter": STRENGTHS, "grayscale": 0.5})
    )
    assert (plain.box, plain.flip) == (drawn.box, drawn.flip)
    assert np.array_equal(plain.erase, drawn.erase)
    assert all(np.array_equal(one, other[:2]) for one, other in zip(plain.randaug, drawn.randaug))
    assert len(drawn.randaug[0]) == 2 + 4 + 1


def test_the_device_pipeline_jitters_as_the_host_s(frames):
    augmentation = Augmentation(jitter=STRENGTHS, grayscale=0.3, erasing=0.5)
    options = {"sampling": Sampling(3), "augmentation": augmentation, "img_size": SIZE}
    plans = [plan_clip(3, SIZE, SIZE, index=index, **options) for index in range(6)]
    clips = [ClipInput(plan, "", frames[: len(plan.frames)]) for plan in plans]
    settings = {"batch_size": 6, "img_size": SIZE, "augmentation": augmentation, "threads": 2}
    host, device = HostPipeline(**settings), DevicePipeline(**settings, device=torch.device("cpu"), decode_on="cpu")
    (expected,), (found,) = (list(pipeline.run([clips])) for pipeline in (host, device))
    host.close()
    assert torch.equal(found, expected)
    assert not torch.equal(found[0], torch.from_numpy(frames[clips[0].plan.order]))


@pytest.mark.parametrize("jitter", [(0.4,), (0.4, 0.4, 0.4, 0.6), (-0.1, 0, 0, 0)])
def test_strengths_that_cannot_be_are_refused(jitter):
    with pytest.raises(UsageError, match="brightness, contrast, saturation and hue"):
        Augmentation(jitter=jitter)
