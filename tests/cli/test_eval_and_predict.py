"""`aim-fast eval` and `aim-fast predict`."""

import json
import subprocess
import sys

import pytest
import torch

from aim_fast.training.metrics import read_metrics

pytestmark = pytest.mark.stack


def test_eval_reports_every_class_its_protocol_and_a_picture(aim_fast, trained, tmp_path):
    file = tmp_path / "scores.json"
    status, out, _ = aim_fast("eval", trained, "--views", "1x3", "--json", file)
    assert status == 0
    scores = json.loads(file.read_text())
    assert "1 clips x 3 crops" in scores["protocol"]
    assert scores["videos"] == 16
    assert sum(row["videos"] for row in scores["classes"]) == 16
    assert scores["top1"] == pytest.approx(sum(row["top1"] * row["videos"] for row in scores["classes"]) / 16)
    assert "protocol" in out
    assert file.with_suffix(".confusion.png").exists()


def test_a_picture_that_cannot_be_drawn_costs_no_score(aim_fast, trained, tmp_path):
    file, picture = tmp_path / "scores.json", tmp_path / "scores.confusion.png"
    picture.mkdir()
    status, out, err = aim_fast("eval", trained, "--json", file)
    assert status == 0
    assert json.loads(file.read_text())["videos"] == 16
    assert "protocol" in out
    assert "confusion matrix" not in out
    assert f"{picture}: not drawn (Is a directory)" in err


def test_json_on_standard_output_is_only_json(aim_fast, trained, tmp_path):
    status, out, _ = aim_fast("eval", trained, "--json", "-", "--confusion", tmp_path / "c.png")
    assert status == 0
    assert {"top1", "top5", "mean_class", "loss", "protocol"} <= set(json.loads(out))


def test_a_checkpoint_folder_and_file_evaluate_as_the_run_does(aim_fast, trained, tmp_path):
    results = []
    for path in (trained / "checkpoints" / "last", trained / "checkpoints" / "last" / "adapters.safetensors"):
        status, out, err = aim_fast("eval", path, "--json", "-", "--confusion", tmp_path / "c.png")
        assert status == 0, err
        results.append(json.loads(out))
    assert results[0] == results[1]


def test_predict_gives_names_and_probabilities(aim_fast, trained, motion_set):
    videos = sorted(motion_set.rglob("*.webm"))[:3]
    status, out, _ = aim_fast("predict", trained, *videos, "--top-k", 8, "--json")
    assert status == 0
    rows = json.loads(out)
    assert [row["video"] for row in rows] == [str(video) for video in videos]
    for row in rows:
        values = [prediction["probability"] for prediction in row["predictions"]]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-4)
        assert len({prediction["label"] for prediction in row["predictions"]}) == 8


def test_predict_scores_a_file_as_eval_does(aim_fast, trained, motion_set, tmp_path):
    """The PyAV path of predict and the loader's path of eval give one video the same most probable class."""
    status, out, _ = aim_fast("eval", trained, "--views", "1x1", "--precision", "fp32", "--json", "-", "--confusion",
                              tmp_path / "c.png")  # fmt: skip
    assert status == 0
    top1 = json.loads(out)["top1"]
    entries = json.loads((motion_set / "validation.json").read_text())
    videos = [motion_set / "20bn-something-something-v2" / f"{entry['id']}.webm" for entry in entries]
    options = ("--views", "1x1", "--top-k", 1, "--precision", "fp32", "--json")
    status, out, _ = aim_fast("predict", trained, *videos, *options)
    assert status == 0
    right = [
        row["predictions"][0]["label"] == entry["template"].replace("[something]", "something")
        for row, entry in zip(json.loads(out), entries)
    ]
    assert sum(right) / len(right) == top1


def test_predict_works_where_dali_is_not_installed(trained, motion_set):
    video = next(motion_set.rglob("*.webm"))
    program = (
        "import sys; sys.modules['nvidia.dali'] = None; sys.modules['triton'] = None; sys.modules['xformers'] = None\n"
        f"from aim_fast.cli import main; main(['predict', {str(trained)!r}, {str(video)!r}])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "%" in result.stdout


def test_a_run_is_loaded_in_python(trained):
    import aim_fast

    run = aim_fast.load_run(trained, device="cpu", precision="fp32")
    logits = run.model(torch.zeros(2, 4, 48, 48, 3, dtype=torch.uint8))
    assert logits.shape == (2, len(run.classes))


def test_a_trunk_that_changed_is_refused(aim_fast, trained, motion_set, tmp_path):
    from aim_fast import create_model
    from aim_fast.models.loading import save_trunk

    torch.manual_seed(5)
    other = tmp_path / "other.safetensors"
    save_trunk(create_model("aim_vit_demo"), other)
    status, _, err = aim_fast("predict", trained, next(motion_set.rglob("*.webm")), "--weights", other)
    assert status == 2
    assert "another trunk" in err


def test_a_published_checkpoint_is_evaluated_by_its_tensors_alone(aim_fast, trained, motion_set, tmp_path):
    """The run's model, written as the published code writes one, scores as the run does."""
    from aim_fast.training.devices import single_place
    from aim_fast.training.run import open_run

    model = open_run(trained, {}, single_place("cpu", "fp32")).model
    names = {name: ("cls_head." if name.startswith("fc_cls") else "backbone.") + name for name in model.state_dict()}
    path = tmp_path / "published.pth"
    torch.save({"meta": {}, "state_dict": {names[name]: value for name, value in model.state_dict().items()}}, path)
    common = ("--views", "1x3", "--json", "-", "--confusion", tmp_path / "c.png", "--precision", "fp32")
    status, ours, err = aim_fast("eval", trained, *common)
    assert status == 0, err
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--model", "aim_vit_demo", "--adapter-scale", 1)
    status, theirs, err = aim_fast("eval", path, *data, *common)
    assert status == 0, err
    assert json.loads(theirs) == json.loads(ours)
    assert read_metrics(trained)
