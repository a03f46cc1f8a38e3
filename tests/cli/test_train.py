"""`aim-fast train` and what it leaves."""

import json

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from aim_fast import create_model
from aim_fast.training.metrics import read_metrics

pytestmark = pytest.mark.stack


def test_a_run_leaves_what_the_design_says(trained):
    for name in ("recipe.yaml", "metrics.jsonl", "curves.png", "tensorboard"):
        assert (trained / name).exists()
    for link in ("last", "best"):
        assert sorted(path.name for path in (trained / "checkpoints" / link).iterdir()) == [
            "adapters.safetensors",
            "state.pt",
        ]
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text())
    fields = (recipe["model"]["model"], recipe["data"]["frames"], recipe["optimisation"]["epochs"])
    assert fields == ("aim_vit_demo", 4, 2)


def test_curves_that_cannot_be_drawn_stop_no_training(aim_fast, tiny, tmp_path):
    run = tmp_path / "run"
    (run / "curves.png").mkdir(parents=True)
    status, _, err = aim_fast("train", *tiny, "--epochs", 2, "--output", run, "--quiet")
    assert status == 0
    assert err.count(f"{run / 'curves.png'}: not drawn (Is a directory)") == 2
    assert [row["epoch"] for row in read_metrics(run) if row["kind"] == "eval"] == [1, 2]


def test_metrics_hold_every_step_and_epoch(trained):
    rows = read_metrics(trained)
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(1, 11))  # 40 clips, 8 a step, 2 epochs
    assert all({"epoch", "step", "loss", "lr", "clips_per_s", "data_wait"} <= set(row) for row in train)
    evaluated = [row for row in rows if row["kind"] == "eval"]
    assert [row["epoch"] for row in evaluated] == [1, 2]
    assert all({"epoch", "top1", "top5", "loss"} <= set(row) for row in evaluated)
    data = [row for row in rows if row["kind"] == "data"]
    assert all((row["broken"], row["missing"], row["replaced"]) == (0, 0, 0) for row in data)


def test_the_file_of_adapters_holds_what_trains_and_says_what_it_belongs_to(trained):
    model = create_model("aim_vit_demo", num_frames=4, num_tadapter=2, adapter_ratio=0.5)
    with safe_open(trained / "checkpoints" / "last" / "adapters.safetensors", "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
        assert not torch.equal(file.get_tensor("temporal_embedding"), torch.zeros(1, 4, 64))
    assert names == dict(model.trainable_parameters()).keys()
    assert metadata["model"] == "aim_vit_demo"
    assert len(metadata["trunk_sha256"]) == 64
    assert len(json.loads(metadata["classes"])) == 8


def test_frozen_tensors_do_not_change(trained, trunk):
    from aim_fast.models.weights.files import read_weights
    from aim_fast.training.devices import single_place
    from aim_fast.training.run import open_run

    model = open_run(trained, {}, single_place("cpu", "fp32")).model
    state = model.state_dict()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    before = read_weights(trunk).tensors
    assert frozen
    assert all(torch.equal(state[name], before[name]) for name in frozen)


def test_two_runs_of_one_seed_have_identical_losses(aim_fast, tiny, trained, tmp_path):
    status, out, _ = aim_fast("train", *tiny, "--epochs", 2, "--output", tmp_path / "again", "--quiet")
    assert status == 0
    assert "top-1" in out

    def losses(folder):
        return [row["loss"] for row in read_metrics(folder) if row["kind"] in ("train", "eval")]

    assert losses(tmp_path / "again") == losses(trained)
    status, _, _ = aim_fast("train", *tiny, "--epochs", 2, "--output", tmp_path / "other", "--seed", 1, "--quiet")
    assert losses(tmp_path / "other") != losses(trained)


def test_every_switch_of_a_recipe_trains(aim_fast, tiny, tmp_path):
    """Accumulation, clipping, EMA, mixup, smoothing, all augmentations, droppath: one short run with everything on."""
    switches = (
        "--accumulate", 2, "--clip-norm", 1, "--ema", 0.5, "--mixup", 0.2, "--cutmix", 1, "--label-smoothing", 0.1,
        "--randaugment", "2,7", "--random-erasing", 0.5, "--color-jitter", 0.1, "--flip", 0.5, "--aug", "published",
        "--drop-path", 0.2, "--drop-path-mode", "clip", "--interval", 2, "--precision", "bf16", "--head-dropout", 0.5,
    )  # fmt: skip
    status, _, err = aim_fast("train", *tiny, *switches, "--epochs", 1, "--output", tmp_path / "run")
    assert status == 0, err
    steps = [row["step"] for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert steps == [1, 2, 3]  # 5 batches, 2 a step


def test_the_averaged_tensors_are_what_is_saved(aim_fast, tiny, tmp_path):
    """With a decay near 1 the average stays at the start, whatever training does."""
    for name, decay in (("start", 0.0), ("ema", 0.999999)):
        epochs = 0 if name == "start" else 1
        assert aim_fast("train", *tiny, "--epochs", epochs, "--ema", decay, "--output", tmp_path / name)[0] == 0

    def head(name):
        with safe_open(tmp_path / name / "checkpoints" / "last" / "adapters.safetensors", "pt") as file:
            return file.get_tensor("fc_cls.weight")

    assert torch.allclose(head("ema"), head("start"), atol=1e-6)
    raw = torch.load(tmp_path / "ema" / "checkpoints" / "last" / "state.pt", weights_only=True)["trainable"]
    assert not torch.allclose(raw["fc_cls.weight"], head("start"), atol=1e-4)


@pytest.mark.slow
def test_the_compiled_model_trains_to_the_same_losses(aim_fast, tiny, trained, tmp_path):
    status, _, err = aim_fast("train", *tiny, "--epochs", 1, "--compile", "--output", tmp_path / "run", "--quiet")
    assert status == 0, err
    plain = [row["loss"] for row in read_metrics(trained) if row["kind"] == "train"][:5]
    compiled = [row["loss"] for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    torch.testing.assert_close(torch.tensor(compiled), torch.tensor(plain), rtol=1e-3, atol=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_files(aim_fast, tiny, tmp_path):
    status, _, err = aim_fast("train", *tiny, "--epochs", 3, "--lr", 1e30, "--output", tmp_path / "run", "--quiet")
    assert status == 2
    assert "loss of step" in err
    assert ".webm" in err


def test_training_from_cached_frames_equals_training_from_videos(aim_fast, tiny, trained, tmp_path):
    run, frames = tmp_path / "run", tmp_path / "frames"
    status, _, err = aim_fast(
        "train", *tiny, "--epochs", 2, "--output", run, "--cache", "frames", "--cache-dir", frames
    )
    assert status == 0, err
    assert "frame cache: 40 of 40 clips" in err
    ours, theirs = (load_file(folder / "checkpoints/last/adapters.safetensors") for folder in (run, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    status, _, err = aim_fast("eval", run)
    assert status == 0, err
    assert "frame cache: 16 of 16 clips" in err
