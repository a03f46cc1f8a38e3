"""`train --cache-features`: the same training as without, from what the frozen bottom made of each clip once."""

import pytest
import torch

from aim_fast.data.features.store import FeatureStore
from aim_fast.data.loader import ClipLoader
from aim_fast.training.metrics import read_metrics

VIEW = ("--train-view", "validation", "--epochs", 2, "--quiet")
TOP = ("--adapter-layers", "top")


def curve(run):
    return torch.tensor([row["loss"] for row in read_metrics(run) if row["kind"] in ("train", "eval")])


def test_the_loss_curve_is_that_of_training_without_a_cache(aim_fast, tiny, tmp_path, monkeypatch):
    options = (*tiny, *VIEW, *TOP, "--precision", "fp32", "--drop-path", 0.2, "--head-dropout", 0.5)
    assert aim_fast("train", *options, "--output", tmp_path / "videos")[0] == 0
    expected = curve(tmp_path / "videos")
    assert len(expected) == 12
    for dtype, tolerance in (("float32", 1e-5), ("float16", 3e-3)):
        cache = ("--cache-features", tmp_path / dtype, "--cache-dtype", dtype)
        status, _, err = aim_fast("train", *options, *cache, "--output", tmp_path / f"{dtype}-run")
        assert status == 0, err
        torch.testing.assert_close(curve(tmp_path / f"{dtype}-run"), expected, rtol=tolerance, atol=0)
    assert FeatureStore(tmp_path / "float16" / "train").shape == (4, 37, 64)

    monkeypatch.setattr(ClipLoader, "batches", None)  # from here on no video can be read
    status, _, err = aim_fast("train", *options, *cache, "--output", tmp_path / "again")
    assert status == 0, err
    assert torch.equal(curve(tmp_path / "again"), curve(tmp_path / "float16-run"))


def test_a_linear_probe_keeps_one_token_a_frame_and_resumes(aim_fast, tiny, tmp_path):
    options = (*tiny, *VIEW[:2], "--quiet", "--adapters", "none", "--cache-features", tmp_path / "cache")
    assert aim_fast("train", *options, "--epochs", 1, "--output", tmp_path / "run")[0] == 0
    assert FeatureStore(tmp_path / "cache" / "train").shape == (4, 1, 64)
    assert aim_fast("train", *options, "--epochs", 1, "--output", tmp_path / "run", "--resume")[0] == 0
    status, out, err = aim_fast("eval", tmp_path / "run")  # from the videos
    assert status == 0, err
    assert "top-1" in out


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (("--weights", "random"), "trunk SHA-256"),
        (("--adapter-layers", "3"), "part input of block 2 of 4"),
        (("--frames", 8), "frames 4, not 8"),
    ],
)
def test_features_of_another_trunk_depth_or_frame_count_are_refused(aim_fast, tiny, cached, tmp_path, other, line):
    options = (*tiny, *VIEW, *TOP, *other, "--cache-features", cached, "--output", tmp_path / "run")
    status, _, err = aim_fast("train", *options)
    assert status == 2
    assert line in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("heads", [("linear", "attentive"), ("attentive", "linear")])
def test_features_that_another_head_reads_are_refused(aim_fast, tiny, tmp_path, heads):
    options = (*tiny, *VIEW[:2], "--quiet", "--method", "probe", "--epochs", 1, "--cache-features", tmp_path / "cache")
    assert aim_fast("train", *options, "--head", heads[0], "--output", tmp_path / "run")[0] == 0
    status, _, err = aim_fast("train", *options, "--head", heads[1], "--output", tmp_path / "other")
    assert status == 2
    assert "holds other features (part input of block 4 of 4" in err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_features_of_a_probe_are_stored_for_its_head_and_trained_from(aim_fast, motion_set, trunk, tmp_path, head):
    data = ("--model", "aim_vit_demo", "--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk)
    options = (*data, "--frames", 4, "--method", "probe", "--head", head)
    status, _, err = aim_fast("features", *options, "--output", tmp_path / "f", "--quiet")
    assert status == 0, err
    run = ("--features", tmp_path / "f", "--epochs", 1, "--output", tmp_path / "run", "--quiet")
    status, _, err = aim_fast("train", *options, *run)
    assert status == 0, err
    assert FeatureStore(tmp_path / "f" / "train").shape == (4, 37 if head == "attentive" else 1, 64)


@pytest.fixture(scope="module")
def cached(tmp_path_factory, motion_set, trunk):
    from aim_fast.cli import main

    folder = tmp_path_factory.mktemp("cache")
    options = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, "--model", "aim_vit_demo")
    small = ("--frames", 4, "--batch-size", 8, *VIEW[:2], *TOP, "--epochs", 0, "--quiet")
    with pytest.raises(SystemExit) as caught:
        main([str(o) for o in ("train", *options, *small, "--cache-features", folder / "f", "--output", folder / "r")])
    assert not caught.value.code
    return folder / "f"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (TOP, "train_view validation: one view of a clip is kept"),
        (VIEW[:2], "use --adapters none, or --adapter-layers top or a list without block 0"),
        ((*VIEW[:2], *TOP, "--temporal-place", "stem"), "not --temporal-place stem"),
        ((*VIEW[:2], *TOP, "--mixup", 0.2), "without features, mixup and cutmix"),
        ((*VIEW[:2], "--model", "timesformer_demo"), "nothing below the first trained block"),
        ((*VIEW[:2], "--method", "full"), "use --method probe, for full trains the first block too"),
    ],
)
def test_what_cannot_be_cached_is_refused_before_anything_is_written(aim_fast, tiny, tmp_path, options, line):
    cache = ("--cache-features", tmp_path / "cache", "--output", tmp_path / "run", "--quiet")
    status, _, err = aim_fast("train", *tiny, *options, *cache)
    assert status == 2
    assert line in err
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run").exists()
