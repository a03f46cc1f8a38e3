"""`train --cache-features`: the same training as without, from what the frozen bottom made of each clip once."""

import pytest
import torch

from aim_fast.data.features.store import FeatureStore
from aim_fast.data.loader import ClipLoader
from aim_fast.models.trunks.clip import CLIPViT
from aim_fast.training.metrics import read_metrics
from tests.cli.stopped_runs import train_and_resume

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


BESIDE = {
    "evl": ("--decoder-layers", 2, "--cache-layers", "all"),
    "side4video": ("--side-width", 64),
    "dist": ("--dist-width", 64, "--dist-temporal", 8, "--dist-pooling", 1),
}


@pytest.mark.parametrize(
    "method", ["side4video", *(pytest.param(method, marks=pytest.mark.slow) for method in ("evl", "dist"))]
)
def test_all_that_a_network_reads_is_kept_and_a_run_from_it_resumes(method, aim_fast, tiny, tmp_path, monkeypatch):
    own, cache = BESIDE[method], ("--cache-features", tmp_path / "cache", "--cache-dtype", "float32")
    options = (*tiny, *VIEW[:2], "--epochs", 1, "--method", method, "--precision", "fp32", "--head-dropout", 0.5)
    asked = own[: own.index("--cache-layers")] if "--cache-layers" in own else own
    status, _, err = aim_fast("train", *options, *asked, "--quiet", "--output", tmp_path / "videos")
    assert status == 0, err
    status, _, err = aim_fast("train", *options, *own, *cache, "--output", tmp_path / "cached")
    assert status == 0, err
    assert f"what {method} reads of blocks" in err
    assert " MiB a clip in float32, " in err
    torch.testing.assert_close(curve(tmp_path / "cached"), curve(tmp_path / "videos"), rtol=1e-5, atol=0)
    monkeypatch.setattr(ClipLoader, "batches", None)  # from here on no video can be read
    whole = train_and_resume(aim_fast, monkeypatch, CLIPViT, (*options, *own, *cache), tmp_path)
    assert torch.equal(curve(whole), curve(tmp_path / "cached"))


def test_a_disk_without_room_for_all_layers_is_refused_beforehand(aim_fast, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("aim_fast.files.free_bytes", lambda place: 2**20)
    options = (*tiny, *VIEW, "--method", "side4video", "--side-width", 64, "--cache-features", tmp_path / "cache")
    status, _, err = aim_fast("train", *options, "--output", tmp_path / "run")
    assert status == 2
    assert "the features need 0.0 GiB and 0.0 GiB are free; take a larger disk, or --data-share" in err
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--cache-layers", "all"), "given with cache_features"),
        (("--cache-layers", "all", *VIEW[:2], "--cache-features", "F"), "is of networks beside a trunk, and aim has"),
        (("--cache-layers", "lower", *VIEW[:2], "--cache-features", "F", "--method", "dist"), "use --cache-layers all"),
    ],
)
def test_layers_that_no_network_reads_are_refused(aim_fast, tiny, tmp_path, monkeypatch, options, line):
    monkeypatch.chdir(tmp_path)
    status, _, err = aim_fast("train", *tiny, *options, "--output", tmp_path / "run", "--quiet")
    assert status == 2
    assert line in err
    assert not list(tmp_path.iterdir())


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
