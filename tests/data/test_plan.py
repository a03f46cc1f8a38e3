"""Clip plans: pure, in range, and distributed as stated."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from aim_fast.data.plan.augmentation import Augmentation
from aim_fast.data.plan.clip_plan import epoch_order, plan_clip, replacement_draw, view_box
from aim_fast.data.plan.sampling import Sampling
from aim_fast.errors import UsageError

FULL = Augmentation(flip=0.5, randaug=(4, 7), color_jitter=0.1, erasing=0.25, pre_crop=7)


def plan(augmentation=FULL, *, frames=60, height=240, width=427, index=0, epoch=0, seed=0, view=0, **options):
    return plan_clip(
        frames,
        height,
        width,
        sampling=options.pop("sampling", Sampling(8)),
        augmentation=augmentation,
        img_size=options.pop("img_size", 224),
        seed=seed,
        epoch=epoch,
        index=index,
        view=view,
    )


def equal(a, b) -> bool:
    parts = [
        np.array_equal(a.frames, b.frames),
        np.array_equal(a.order, b.order),
        a.box == b.box,
        a.flip == b.flip,
        np.array_equal(a.light, b.light),
        np.array_equal(a.erase, b.erase),
        all(np.array_equal(x, y) for x, y in zip(a.randaug, b.randaug)),
    ]
    return all(parts)


def test_a_plan_depends_on_seed_epoch_index_and_view_alone():
    first = plan(index=7, epoch=3, seed=5)
    for other in range(20):  # what was planned in between leaves no trace
        plan(index=other)
    assert equal(first, plan(index=7, epoch=3, seed=5))
    for change in ({"index": 8}, {"epoch": 4}, {"seed": 6}, {"view": 1}):
        assert not equal(first, plan(**{"index": 7, "epoch": 3, "seed": 5, **change}))


def test_threads_plan_alike():
    plans = {}

    def work(name: int) -> None:
        plans[name] = [plan(index=i) for i in range(50)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(a, b) for name in range(1, 4) for a, b in zip(plans[0], plans[name]))


def test_large_and_negative_seeds_are_seeds():
    assert plan(seed=-1).box != plan(seed=2**63).box


def test_switching_one_augmentation_leaves_the_others_draws():
    full = plan(index=3)
    for off in ({"flip": 0.0}, {"randaug": None}, {"color_jitter": 0.0}, {"erasing": 0.0}):
        other = plan(replace(FULL, **off), index=3)
        assert np.array_equal(full.frames[full.order], other.frames[other.order])
        assert full.box == other.box
        if "erasing" not in off:
            assert np.array_equal(full.erase, other.erase)


def test_augmentation_off_is_absent():
    bare = plan(Augmentation(random_resized_crop=False))
    assert (bare.flip, bare.randaug, bare.light, bare.erase) == (False, None, None, None)
    y0, x0, y1, x1 = bare.box
    assert (y0, y1) == (0, 1)
    assert x0 + x1 == pytest.approx(1, abs=2 / 455)
    assert (x1 - x0) * 427 == pytest.approx(240, abs=1)


def test_random_boxes_have_the_stated_area_and_aspect():
    boxes = np.array([plan(Augmentation(), index=i).box for i in range(3000)])
    height, width = (boxes[:, 2] - boxes[:, 0]) * 256, (boxes[:, 3] - boxes[:, 1]) * 455
    area = height * width / (256 * 455)
    aspect = width / height
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert 0.079 < area.min() < 0.1
    assert area.max() > 0.7
    assert aspect.min() > 0.72
    assert aspect.max() < 1.36
    # Uniform area, less where a box no longer fits: below half the frame every box fits.
    small = area[area < 0.45]
    assert np.histogram(small, bins=4, range=(0.08, 0.45))[0].min() > 0.2 * len(small)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240), (224, 224)])
def test_a_square_may_be_taken_anywhere_of_a_frame_whose_short_side_is_drawn(height, width):
    augmentation = Augmentation(short_sides=(224, 258))
    boxes = np.array([plan(augmentation, index=i, height=height, width=width).box for i in range(3000)])
    top, left, bottom, right = boxes.T
    np.testing.assert_allclose((bottom - top) * height, (right - left) * width, rtol=0.005)
    sides = np.round(224 / np.maximum(bottom - top, right - left)).astype(int)  # a share of the short side
    assert (sides.min(), sides.max()) == (224, 258)
    for first, last in ((top, bottom), (left, right)):  # it reaches every edge and leaves none
        assert 0 == first.min() <= last.max() == 1


def test_a_box_that_never_fits_falls_back_to_the_centre_square():
    y0, x0, y1, x1 = plan(Augmentation(scale=(0.9, 1.0)), height=100, width=1000).box
    assert (y0, y1) == (0, 1)
    assert x1 - x0 == pytest.approx(0.1, abs=1e-3)
    assert x0 + x1 == pytest.approx(1, abs=2e-3)


def test_flip_and_erasing_come_at_their_rates():
    plans = [plan(index=i) for i in range(2000)]
    assert np.mean([p.flip for p in plans]) == pytest.approx(0.5, abs=0.05)
    boxes = np.array([p.erase for p in plans if p.erase.any()])
    assert len(boxes) / 2000 == pytest.approx(0.25, abs=0.04)
    y, x, height, width = boxes.T
    assert (y + height).max() <= 224
    assert (x + width).max() <= 224
    area = height * width / 224**2
    assert area.min() > 0.019
    assert area.max() < 0.34
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    assert (height / width).min() > 0.28
    assert (height / width).max() < 3.5


def test_there_is_no_flip_unless_asked_for():
    assert not any(plan(Augmentation(), index=i).flip for i in range(500))


def test_pre_crop_takes_up_to_its_pixels_from_each_side():
    plain, cropped = (np.array([plan(Augmentation(pre_crop=p), index=i).box for i in range(300)]) for p in (0.0, 7.0))
    loss = np.abs(cropped - plain) / np.stack([plain[:, 2] - plain[:, 0], plain[:, 3] - plain[:, 1]] * 2, axis=1)
    assert loss.max() <= 7 / 224 + 1e-9
    assert loss.max(axis=0).min() > 6 / 224


def test_lighting_has_the_spread_of_its_weights():
    light = np.array([plan(index=i).light for i in range(3000)])
    expected = 0.1 * np.sqrt(((np.array([-0.5675, 0.7192, 0.4009]) * [55.4625, 4.7940, 1.1475]) ** 2).sum())
    assert light[:, 0].std() == pytest.approx(expected, rel=0.05)
    assert np.abs(light.mean(axis=0)).max() < 0.5


def test_repeated_frames_are_decoded_once():
    short = plan(None, frames=5, sampling=Sampling(8))
    assert len(short.frames) == len(set(short.frames.tolist())) <= 5
    assert short.frames[short.order].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] or len(short.order) == 8
    assert np.all(np.diff(short.frames) > 0)


@pytest.mark.parametrize(("height", "width"), [(240, 427), (256, 340), (427, 240), (224, 224), (1080, 1920)])
def test_three_crops_are_left_right_middle_or_top_bottom_middle(height, width):
    boxes = np.array([view_box(height, width, 224, 224, crop, 3) for crop in range(3)])
    long = 1 if width >= height else 0
    starts, ends = boxes[:, long], boxes[:, long + 2]
    assert starts[0] == 0
    assert ends[1] == pytest.approx(1, abs=1.01 / 224)  # an odd rest leaves a pixel, as published
    assert starts[0] + starts[1] == pytest.approx(2 * starts[2])
    assert np.all(boxes[:, 1 - long] == 0)
    assert np.all(boxes[:, 3 - long] == 1)


def test_validation_takes_224_from_the_centre_of_256():
    sampling = Sampling(8, interval=4, clips=3, crops=3).validation(224)
    assert (sampling.clips, sampling.crops, sampling.short_side) == (1, 1, 256)
    box = plan(None, sampling=sampling, height=256, width=340).box
    assert box == pytest.approx((16 / 256, 58 / 340, 240 / 256, 282 / 340))


def test_evaluation_views_pair_clips_with_crops():
    sampling = Sampling(4, interval=4, clips=2, crops=3)
    views = [plan(None, frames=100, sampling=sampling, view=v) for v in range(6)]
    assert [v.frames[0] for v in views] == [views[0].frames[0]] * 3 + [views[3].frames[0]] * 3
    assert views[0].frames[0] != views[3].frames[0]
    assert [v.box for v in views[:3]] == [v.box for v in views[3:]]
    assert len({v.box for v in views}) == 3


def test_an_epoch_is_a_permutation_of_its_own():
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(orders[0], epoch_order(100, 0, 0))


def test_replacements_are_drawn_from_seed_epoch_and_index():
    def draws(**options):
        return [replacement_draw(50, **{"seed": 0, "epoch": 0, **options, "index": i}) for i in range(40)]

    assert draws() == draws()
    assert draws() != draws(epoch=1)
    assert draws() != draws(seed=1)
    assert draws() != draws(attempt=1)
    assert len(set(draws())) > 15
    assert 0 <= min(draws()) <= max(draws()) < 50


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 1.5},
        {"erasing": -0.1},
        {"scale": (0.5, 0.1)},
        {"ratio": (0, 1)},
        {"randaug": (19, 7)},
        {"randaug": (4, 31)},
    ],
)
def test_impossible_augmentation_is_a_usage_error(options):
    with pytest.raises(UsageError):
        Augmentation(**options)


@pytest.mark.parametrize(("height", "width"), [(256, 340), (340, 256), (256, 256)])
def test_a_multi_scale_crop_has_neighbouring_sides_at_thirteen_places(height, width):
    """Wang et al., TSN, 2016: sides of 256, 224, 192 and 168 of 256 pixels, at most one step of the list apart."""
    augmentation = Augmentation(crop_scales=(1, 0.875, 0.75, 0.66))
    boxes = np.array([plan(augmentation, index=i, height=height, width=width).box for i in range(4000)])
    pixels = np.rint(boxes * [height, width, height, width]).astype(int)
    top, left, bottom, right = pixels.T
    sizes = {(h, w) for h, w in zip(bottom - top, right - left)}
    sides = (256, 224, 192, 168)
    assert sizes == {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1}
    places = {(y, x) for y, x, h, w in zip(top, left, bottom - top, right - left) if (h, w) == (168, 168)}
    down, across = (height - 168) // 4, (width - 168) // 4
    quarters = {(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (0, 2), (2, 0), (4, 2), (2, 4), (1, 1), (1, 3), (3, 1), (3, 3)}
    assert places == {(y * down, x * across) for y, x in quarters}


@pytest.mark.parametrize("fields", [{"crop_scales": (1.2,)}, {"crop_scales": (0.5,), "short_sides": (224, 256)}])
def test_scales_that_cannot_be_are_refused(fields):
    with pytest.raises(UsageError, match="give shares up to 1, and no short_sides"):
        Augmentation(**fields)
