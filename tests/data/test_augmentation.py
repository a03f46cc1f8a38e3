"""PCA lighting and random erasing against plain NumPy, timm's policies against timm; one draw for all frames."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from aim_fast.data import Augmentation, ClipLoader, Sampling, load_or_build_index
from aim_fast.data.pixels.clip_input import ClipInput
from aim_fast.data.pixels.timm_policy import TimmPolicy
from aim_fast.data.plan.clip_plan import ClipPlan, plan_clip
from aim_fast.errors import UsageError
from aim_fast.training.recipe_file import load_recipe

SIZE = 32
SPEC = "rand-m9-mstd0.5-inc1"


def plans(augmentation: Augmentation, count: int) -> list[ClipPlan]:
    options = {"sampling": Sampling(3), "augmentation": augmentation, "img_size": SIZE, "epoch": 2}
    return [plan_clip(40, 120, 160, index=index, **options) for index in range(count)]


def run(augmentation: Augmentation, made: list[ClipPlan], frames: np.ndarray) -> np.ndarray:
    """uint8 [B, T, S, S, 3]: what the pipeline makes of frames uint8 [U, S, S, 3] by each plan."""
    pytest.importorskip("nvidia.dali")
    from aim_fast.data.pixels.dali_pipelines import augment_inputs, augmenting

    clips = [ClipInput(plan, "", frames[: len(plan.frames)]) for plan in made]
    pipeline = augmenting(SIZE, augmentation, batch_size=len(clips), threads=2)
    pipeline.start(augment_inputs(clips, [clip.pixels for clip in clips], augmentation))
    return torch.from_dlpack(pipeline.wait().as_tensor()).clone().numpy()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def test_lighting_noise_is_krizhevskys():
    """light = E (w ∘ λ), w normal of deviation 0.1: over many clips E diag(0.1 λ)² Eᵀ is its covariance."""
    eigenvalues = np.array([55.4625, 4.7940, 1.1475])
    eigenvectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    light = np.stack([plan.light for plan in plans(Augmentation(color_jitter=0.1), 4000)])
    weights = np.linalg.solve(eigenvectors, light.T.astype(np.float64)).T / eigenvalues
    assert np.abs(weights.mean(0)).max() < 0.01
    np.testing.assert_allclose(np.cov(weights.T), 0.01 * np.eye(3), atol=0.0015)
    assert 0.002 < (np.abs(weights) > 0.3).mean() < 0.0035  # beyond three deviations, as a normal is: 0.27 %


def test_lighting_adds_the_same_levels_to_every_pixel_of_every_frame_as_numpy_does(frames):
    augmentation = Augmentation(color_jitter=0.3)
    made = plans(augmentation, 6)
    found = run(augmentation, made, frames)
    for plan, clip in zip(made, found):
        expected = np.clip(np.rint(frames[plan.order].astype(np.float32) + plan.light), 0, 255)
        assert np.abs(clip - expected).max() <= 1
        assert (clip != expected).mean() < 0.001  # sums that lie between two levels


def test_erasing_fills_the_drawn_box_as_numpy_does(frames):
    augmentation = Augmentation(erasing=0.6, fill=(7, 8, 9))
    made = plans(augmentation, 12)
    found = run(augmentation, made, frames)
    assert 0 < sum(plan.erase.any() for plan in made) < 12
    for plan, clip in zip(made, found):
        y, x, height, width = plan.erase.astype(int)
        expected = frames[plan.order].copy()
        expected[:, y : y + height, x : x + width] = (7, 8, 9)
        assert np.array_equal(clip, expected)


def test_erased_boxes_have_the_published_areas_aspects_and_share():
    """Zhong et al.: an area of 2 % to a third of the image, an aspect of 0.3 to 3.33, anywhere inside it."""
    drawn = [
        plan_clip(40, 120, 160, sampling=Sampling(3), augmentation=Augmentation(erasing=0.25), img_size=224, index=i)
        for i in range(4000)
    ]
    boxes = np.stack([plan.erase for plan in drawn if plan.erase.any()])
    assert 0.22 < len(boxes) / 4000 < 0.28
    y, x, height, width = boxes.T
    assert (y >= 0).all()
    assert (x >= 0).all()
    assert (y + height <= 224).all()
    assert (x + width <= 224).all()
    area, aspect = height * width / 224**2, height / width
    assert 0.019 < area.min() < 0.03
    assert 0.31 < area.max() < 0.335
    assert 0.29 < aspect.min() < 0.36
    assert 2.8 < aspect.max() < 3.4
    assert abs(np.log(aspect).mean()) < 0.1


@pytest.mark.parametrize("spec", [SPEC, "rand-m7-n3", "original-mstd0.5", "v0", "3a"])
def test_a_policy_gives_what_timm_gives_with_its_generator_at_the_clips_seed(spec, frames):
    from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

    policy = TimmPolicy(spec, SIZE, (124, 116, 104))
    make = rand_augment_transform if spec.startswith("rand") else auto_augment_transform
    options = {"translate_const": 14, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BILINEAR}
    timms = make(spec, options)
    changed = 0
    for seed in range(20):
        state = random.getstate()
        found = policy(frames, seed)
        assert random.getstate() == state
        changed += not np.array_equal(found, frames)
        if spec == "3a":  # its blur draws while it works: the same in every frame all the same
            still = policy(np.stack([frames[0]] * 3), seed)
            assert all(np.array_equal(frame, still[0]) for frame in still)
            continue
        for frame, theirs in zip(frames, found):
            random.seed(seed)
            if spec.startswith("rand"):
                chosen = np.random.Generator(np.random.Philox(key=seed)).choice(len(timms.ops), timms.num_layers)
                image = Image.fromarray(frame)
                for number in chosen:
                    image = timms.ops[number](image)
            else:
                image = timms(Image.fromarray(frame))
            assert np.array_equal(np.asarray(image), theirs)
    assert changed > 5


def test_clips_of_a_policy_are_a_function_of_seed_epoch_and_index(class_folders, videos):
    pytest.importorskip("nvidia.dali")
    root = class_folders({"train/a": [videos[kind] for kind in ("vp9", "vp9_other", "h264", "mpeg4", "vp8")]})
    index = load_or_build_index("folder", root, "train")

    def batches(workers: int = 2, decoder: str = "auto", start: int = 0, **fields) -> list[torch.Tensor]:
        augmentation = replace(Augmentation(policy=SPEC, erasing=0.5), **fields)
        loader = ClipLoader(
            index, train=True, batch_size=2, img_size=SIZE, num_frames=4, augmentation=augmentation, workers=workers,
            decoder=decoder,
        )  # fmt: skip
        found = [batch.frames for batch in loader.batches(1, start=start)]
        loader.close()
        return found

    whole = batches()
    for other in (batches(workers=1), batches(decoder="pyav")):
        assert all(torch.equal(*pair) for pair in zip(whole, other, strict=True))
    assert all(torch.equal(*pair) for pair in zip(whole[1:], batches(start=1), strict=True))
    plain = batches(policy="")
    assert any(not torch.equal(*pair) for pair in zip(whole, plain, strict=True))


def test_policies_leave_the_other_draws_as_they_were():
    full = Augmentation(flip=0.5, color_jitter=0.1, erasing=0.5)
    for plain, drawn in zip(plans(full, 20), plans(replace(full, policy=SPEC), 20)):
        assert plain.policy_seed is None
        assert drawn.policy_seed is not None
        assert (plain.box, plain.flip) == (drawn.box, drawn.flip)
        assert np.array_equal(plain.light, drawn.light)
        assert np.array_equal(plain.erase, drawn.erase)
    assert len({plan.policy_seed for plan in plans(replace(full, policy=SPEC), 50)}) == 50


@pytest.mark.parametrize("spec", ["rand-q9", "randm9", "original-m9", "v9", "augmix-m5", ""])
def test_unknown_policies_are_refused_in_one_line(spec):
    with pytest.raises(UsageError, match="write for example timm:rand-m9") as error:
        TimmPolicy(spec, SIZE, (0, 0, 0))
    assert "\n" not in str(error.value)


def test_a_recipe_takes_one_random_augmentation():
    assert load_recipe("finetune_b16", {"aug": f"timm:{SPEC}"}).augmentation.aug == f"timm:{SPEC}"
    with pytest.raises(UsageError, match="add --randaugment none"):
        load_recipe("ssv2_b16_8f", {"aug": f"timm:{SPEC}"})
    with pytest.raises(UsageError, match="default, published or timm:POLICY"):
        load_recipe("finetune_b16", {"aug": "timm"})
