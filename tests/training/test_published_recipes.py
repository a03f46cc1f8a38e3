"""Recipes of other systems: the values that their papers and public code have, and what they ask of the data path."""

from __future__ import annotations

import pytest

from aim_fast.errors import UsageError
from aim_fast.training.clips import augmentation_of, sampling_of
from aim_fast.training.recipe_file import load_recipe, recipe_mark, shipped_recipes
from aim_fast.training.recipe_model import borrowed_from

RAND = "timm:rand-m7-n4-mstd0.5-inc1"
SOFT = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}
COLOUR = {"jitter": (0.4, 0.4, 0.2, 0.1), "grayscale": 0.2}
TSN = {"crop_scales": (1.0, 0.875, 0.75, 0.66), "jitter_prob": 0.8, "flip": 0.5, **COLOUR}
HEAVY = {"aug": RAND, "random_erasing": 0.25, "aug_repeats": 2, **SOFT}
SIDE = {"lr": 1e-3, "weight_decay": 0.15, "epochs": 30, "warmup_epochs": 4.0, "label_smoothing": 0.1}
SEGMENTS = {"interval": 0, "equal_segments": True}

PUBLISHED = {
    "k400_evl": {
        "total_batch_size": 256,
        "lr": 4e-4,
        "weight_decay": 0.05,
        "warmup_epochs": 0.0,
        "schedule": "steps",
        "frames": 8,
        "interval": 16,
        "aug": RAND,
        "flip": 0.0,
        "views": "3x1",
        "view_starts": "ends",
    },
    "k400_st_adapter": {
        "total_batch_size": 192,
        "lr": 7.5e-4,
        "weight_decay": 0.01,
        "epochs": 12,
        "warmup_epochs": 2.0,
        "crop_short_side": (224, 258),
        "flip": 0.5,
        "views": "3x1",
        "view_starts": "ends",
    },
    "ssv2_st_adapter": {
        "total_batch_size": 256,
        "lr": 1e-3,
        "epochs": 50,
        "aug": RAND,
        "crop_area": (0.08, 1.0),
        "flip": 0.0,
        "crop_short_side": (),
        "views": "1x3",
        "interval": 0,
        "equal_segments": False,
    },
    "k400_actionclip": {
        "total_batch_size": 128,
        "lr": 5e-6,
        "weight_decay": 0.2,
        "betas": (0.9, 0.98),
        "epochs": 50,
        "warmup_epochs": 5.0,
        "warmup_factor": 0.0,
        "randaugment": (2, 9),
        "views": "10x3",
        **TSN,
        **SEGMENTS,
    },
    "k400_x_clip": {
        "total_batch_size": 256,
        "lr": 8e-6,
        "weight_decay": 0.001,
        "betas": (0.9, 0.98),
        "epochs": 30,
        "warmup_epochs": 5.0,
        "min_lr": 8e-8,
        "views": "4x3",
        "random_views": True,
        **TSN,
        **SOFT,
        **SEGMENTS,
    },
    "k400_zeroi2v": {"total_batch_size": 64, "lr": 3e-4, "epochs": 40, "randaugment": (4, 7), "flip": 0.5},
    "ssv2_zeroi2v": {
        "epochs": 50,
        "flip": 0.5,
        "flip_labels": True,
        "random_erasing": 0.25,
        "label_smoothing": 0.1,
        "adapter_scale": 1.0,
        "zero_dropout": 0.0,
        "shift_reach": 2,
        "views": "1x3",
    },
    "k400_side4video": {**SIDE, "batch_size": 32, "grayscale": 0.2, "flip": 0.5, "views": "4x3"},
    "ssv2_side4video": {
        **SIDE,
        "batch_size": 16,
        "grayscale": 0.0,
        "flip": 0.5,
        "flip_labels": True,
        "aug": RAND,
        "aug_repeats": 2,
        "views": "2x3",
    },
    "k400_dist": {
        "total_batch_size": 256,
        "lr": 3.2e-4,
        "weight_decay": 1e-4,
        "epochs": 36,
        "warmup_epochs": 6.0,
        "crop_area": (0.4, 1.0),
        "views": "3x1",
        "frames": 16,
        **COLOUR,
        **SOFT,
        **SEGMENTS,
    },
    "ssv2_dist": {"dist_pooling": 2, "flip": 0.5, "flip_labels": True, "epochs": 36, "frames": 16, **COLOUR, **SOFT},
    "k400_uniformer": {
        "total_batch_size": 32,
        "lr": 1e-4,
        "weight_decay": 0.05,
        "epochs": 110,
        "warmup_epochs": 10.0,
        "min_lr": 1e-6,
        "drop_path": 0.3,
        "views": "4x3",
        **HEAVY,
    },
    "k400_mvit_v1_b_16f": {
        "total_batch_size": 16,
        "lr": 1e-4,
        "weight_decay": 0.05,
        "epochs": 200,
        "warmup_epochs": 30.0,
        "clip_norm": 1.0,
        "min_lr": 1e-6,
        "views": "5x1",
        **HEAVY,
    },
    "k400_swin3d_b": {"lr": 3e-4, "lr_factors": ("trunk=0.1",), "epochs": 30, "interval": 2, "views": "4x3"},
    "k400_timesformer_network_96f": {
        "optimizer": "sgd",
        "lr": 5e-3,
        "weight_decay": 1e-4,
        "epochs": 15,
        "lr_drops": (11, 14),
        "crop_short_side": (256, 320),
        "frames": 96,
        "interval": 4,
        "views": "1x3",
        "total_batch_size": 8,
    },
    "k400_vivit_fe": {
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "epochs": 30,
        "warmup_epochs": 2.5,
        "crop_short_side": (230, 340),
        "jitter_prob": 0.8,
        "grayscale": 0.1,
        "interval": 2,
        "views": "4x3",
    },
    "k400_mtv": {"drop_path": 0.1, "total_batch_size": 64, "lr": 0.1},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_their_published_values(name):
    fields = load_recipe(name, {}).fields()
    assert {key: fields[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    assert recipe_mark(name) == "published"


@pytest.mark.parametrize("method", ["evl", "x_clip", "actionclip"])
def test_what_nobody_published_for_a_data_set_says_that_it_is_ours(method):
    recipe = load_recipe(f"ssv2_{method}", {})
    assert recipe_mark(f"ssv2_{method}") == "ours"
    assert (recipe.data.dataset, recipe.data.interval, recipe.augmentation.flip) == ("ssv2", 0, 0.0)


def test_a_recipe_s_fields_reach_the_data_path():
    recipe = load_recipe("k400_x_clip", {})
    augmentation, sampling = augmentation_of(recipe), sampling_of(recipe)
    assert (augmentation.jitter, augmentation.jitter_prob, augmentation.grayscale) == ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
    assert augmentation.crop_scales == (1.0, 0.875, 0.75, 0.66)
    assert (sampling.equal, sampling.random, sampling.clips, sampling.crops) == (True, True, 4, 3)
    twice = augmentation_of(load_recipe("ssv2_side4video", {}))
    assert (twice.repeats, twice.flip_labels, twice.policy) == (2, True, RAND.removeprefix("timm:"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"jitter": "0.4,0.4"}, "jitter: .* must be brightness, contrast, saturation and hue"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "hue .to 0.5."),
        ({"crop_scales": (1.5,)}, "shares above 0 and up to 1"),
        ({"crop_scales": (1.0, 0.5), "crop_short_side": (224, 258)}, "given without crop_short_side"),
        ({"grayscale": 2}, "from 0 to 1"),
        ({"aug_repeats": 0}, "from 1 to 16"),
        ({"aug_repeats": 2, "train_view": "validation"}, "1 where nothing is drawn at random"),
    ],
)
def test_augmentations_that_cannot_be_are_refused_in_one_line(fields, says):
    with pytest.raises(UsageError, match=says) as caught:
        load_recipe("finetune_b16", fields)
    assert "\n" not in str(caught.value)


def test_who_trains_by_the_recipe_of_another_method_is_told(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: k400_evl\nmethod: lora\n")
    (tmp_path / "mine2.yaml").write_text(f"extends: {tmp_path / 'mine.yaml'}\nlr: 1.0e-3\n")
    told = "recipe k400_evl is of evl: lora trains with its rates, batch and augmentation; k400_lora is of lora"
    for source, given in (
        ("k400_evl", {"method": "lora"}),
        *((tmp_path / name, {}) for name in ("mine.yaml", "mine2.yaml")),
    ):
        assert borrowed_from(source, load_recipe(source, given)) == told
    # by its own, and by what is taken for a method that has none
    (tmp_path / "own.yaml").write_text("extends: k400_lora\nlr: 1.0e-4\n")
    for source, given in (
        *((name, {}) for name in shipped_recipes()),
        (tmp_path / "own.yaml", {}),
        ("ssv2_b16_8f", {"model": "vit_b16_clip", "method": "full"}),
        (None, {"dataset": "ssv2", "method": "lora"}),
    ):
        assert borrowed_from(source, load_recipe(source, given)) is None, source
