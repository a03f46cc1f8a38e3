"""Runs with the augmentations of other systems: they train, go on to the same bits, and say what cannot be."""

from __future__ import annotations

import pytest
import torch

from aim_fast.training.loop import train
from aim_fast.training.recipe_file import load_recipe
from tests.cli.processes import adapters, losses

OPTIONS = {
    "crop_scales": (1.0, 0.75),
    "jitter": (0.4, 0.4, 0.2, 0.1),
    "jitter_prob": 0.8,
    "grayscale": 0.2,
    "flip": 0.5,
    "flip_labels": True,
    "aug_repeats": 2,
    "mixup": 0.8,
    "label_smoothing": 0.1,
}


@pytest.fixture
def recipe_of(motion_set, trunk, tmp_path):
    def make(name, **fields):
        data = {"dataset": "ssv2", "data_root": str(motion_set), "weights": str(trunk), "frames": 4, "epochs": 1}
        sizes = {"batch_size": 3, "total_batch_size": 6, "log_every": 1, "device": "cpu", "precision": "fp32"}
        return load_recipe("demo", {**data, **sizes, **OPTIONS, "output": str(tmp_path / name), **fields})

    return make


def test_a_run_goes_on_within_an_epoch_to_the_bits_of_an_unbroken_one(recipe_of, tmp_path):
    """Three clips of two samples each at a time: an even number to mix."""
    train(recipe_of("whole"), quiet=True)
    train(recipe_of("broken"), quiet=True, until=3)
    train(recipe_of("broken", workers=1), resume=True, quiet=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    ours, theirs = adapters(tmp_path / "broken"), adapters(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_labels_that_no_mirror_swaps_are_refused_before_training(aim_fast, motion_set, trunk, tmp_path):
    (tmp_path / "classes.txt").write_text("Moving something down\nMoving something up\n")
    status, _, err = aim_fast(
        "train", "--recipe", "demo", "--data-root", motion_set, "--weights", trunk, "--flip", 0.5, "--flip-labels",
        "--classes", tmp_path / "classes.txt", "--frames", 4, "--output", tmp_path / "a", "--quiet",
    )  # fmt: skip
    assert status == 2
    assert "leave flip_labels out" in err
