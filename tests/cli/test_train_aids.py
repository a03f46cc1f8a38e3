"""Runs of several labels a clip, with weights, a teacher, limits and measured sizes; all go on exactly."""

import csv
import json
import re

import pytest
import torch
from PIL import Image

from aim_fast.models.frame_model import FrameModel
from aim_fast.training.metrics import read_metrics
from aim_fast.training.run_folder import saved_recipe
from tests.cli.conftest import TINY
from tests.cli.processes import finish, start
from tests.cli.stopped_runs import adapters, losses, train_and_resume


@pytest.fixture(scope="module")
def several(tmp_path_factory, motion_set):
    """The motion set as lists of several labels a clip: what moves, where to, and `any`."""
    folder = tmp_path_factory.mktemp("several")
    videos = {path.stem: path for path in motion_set.rglob("*.*") if path.suffix in (".webm", ".mp4")}
    for split, name in (("train", "train"), ("validation", "val")):
        rows = json.loads((motion_set / f"{split}.json").read_text())
        words = [[word.strip("[]") for word in row["template"].split()] for row in rows]
        lines = [f"{videos[row['id']]} {first};{last}" for row, (first, *_, last) in zip(rows, words)]
        (folder / f"{name}.txt").write_text("\n".join([*lines[:-1], str(videos[rows[-1]["id"]])]) + "\n")
    return folder


@pytest.fixture(scope="module")
def of_several(several, trunk):
    return ("--dataset", "list", "--data-root", several, "--weights", trunk, *TINY, "--multi-label", "--device", "cpu")


def precision(rows, name):
    """The mean, over the videos that have a class, of the share that has it among those that score as high."""
    scored = [(float(row[f"score/{name}"]), name in row["label"].split(";")) for row in rows]
    shares = []
    for least in (score for score, has in scored if has):
        taken = [has for score, has in scored if score >= least]
        shares.append(sum(taken) / len(taken))
    return sum(shares) / len(shares)


@pytest.mark.slow
def test_a_run_of_several_labels_is_trained_scored_reported_and_goes_on_exactly(
    aim_fast, monkeypatch, of_several, several, tmp_path
):
    options = (*of_several, "--epochs", 2, "--balanced-sampling", "--class-weights", "balanced", "--patience", 5)
    run = train_and_resume(aim_fast, monkeypatch, FrameModel, options, tmp_path)
    last = [row for row in read_metrics(run) if row["kind"] == "eval"][-1]
    assert 0 < last["map"] <= 1
    assert "top1" not in last

    status, out, err = aim_fast("eval", run, "--views", "1x1", "--json", "-", "--predictions", tmp_path / "p.csv")
    assert status == 0, err
    found = json.loads(out)
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    classes = [key.removeprefix("score/") for key in rows[0] if key.startswith("score/")]
    assert found["map"] == pytest.approx(sum(precision(rows, name) for name in classes) / len(classes), rel=1e-6)
    written = dict(line.rstrip().partition(" ")[::2] for line in (several / "val.txt").read_text().splitlines())
    assert {row["video"]: set(row["label"].split(";")) for row in rows} == {
        video: set(labels.split(";")) for video, labels in written.items()
    }
    assert sum(float(rows[0][key]) for key in rows[0] if key.startswith("score/")) != pytest.approx(1, abs=1e-3)

    page = (run / "report.html").read_text()
    assert "mAP" in page
    assert "Confusion matrix" not in page
    assert "top-1" not in page
    assert aim_fast("report", run, "--output", tmp_path / "again.html")[0] == 0
    video = rows[0]["video"]
    predicted = json.loads(aim_fast("predict", run, video, "--json", "--views", "1x1")[1])[0]["predictions"]
    scores = {key.removeprefix("score/"): float(value) for key, value in rows[0].items() if key.startswith("score/")}
    assert {row["label"]: row["probability"] for row in predicted} == pytest.approx(
        {row["label"]: scores[row["label"]] for row in predicted}, abs=2e-3
    )
    assert aim_fast("convert", run, tmp_path / "one.safetensors")[0] == 0
    file = json.loads(aim_fast("predict", tmp_path / "one.safetensors", video, "--json", "--views", "1x1")[1])[0][
        "predictions"
    ]
    assert [row["probability"] for row in file] == pytest.approx([row["probability"] for row in predicted], abs=1e-5)


def test_what_does_not_go_with_several_labels_is_refused_in_a_line(aim_fast, of_several, trained, tmp_path):
    for options, said in (
        (("--mixup", 0.8), "multi_label: True must be left out with mixup and cutmix"),
        (("--shots", 2), "shots: 2 must be 0 with multi_label"),
        (
            ("--patience", 2, "--patience-metric", "top1"),
            "patience_metric: 'top1' must be map or loss with multi_label",
        ),
        (("--teacher", trained), f"teacher {trained}: was trained on one label a clip"),
    ):
        status, out, err = aim_fast("train", *of_several, *options, "--output", tmp_path / "run", "--quiet")
        assert (status, out, said in err) == (2, "", True), err
        assert not (tmp_path / "run").exists()
    status, _, err = aim_fast("eval", trained, "--multi-label")
    assert status == 2
    assert "was trained without multi_label" in err


@pytest.mark.slow
def test_a_run_that_learns_from_another_goes_on_exactly_and_only_from_that(
    aim_fast, monkeypatch, tiny, trained, tmp_path
):
    frames = (*tiny, "--epochs", 1)
    assert aim_fast("train", *frames, "--lr", 0.01, "--output", tmp_path / "alone", "--quiet")[0] == 0
    options = (*frames, "--teacher", trained, "--distill-weight", 0.7, "--distill-temperature", 2)
    run = train_and_resume(aim_fast, monkeypatch, FrameModel, options, tmp_path)
    assert losses(run)[0] != losses(tmp_path / "alone")[0]
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace(str(trained), str(tmp_path / "alone")))
    status, _, err = aim_fast("train", "--output", run, "--resume", "--quiet")
    assert (status, "had another teacher than" in err) == (2, True), err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--teacher", "nowhere"), "nowhere: does not exist"),
        (("--teacher", "RUN", "--frames", 2), "takes 4 frames, not 2: train with --frames 4"),
        (("--teacher", "RUN", "--features", "x"), "teacher: .* must be left out with features and cache_features"),
        (("--time-limit", "soon"), "time_limit: 'soon' must be a time such as 1:30"),
        (("--layer-decay", 0), "layer_decay: 0.0 must be above 0 and at most 1"),
        (("--batch-size", 0), "batch_size: 0 must be at least 1"),
        (("--class-weights", "nowhere.txt"), "nowhere.txt does not exist"),
        (("--patience-metric", "loss"), "patience_metric: 'loss' must be given with patience"),
        (("--balanced-sampling", "--read-order", "shards"), "balanced_sampling: True must be left out with read_order"),
    ],
)
def test_an_aid_that_cannot_be_is_refused_before_anything_is_written(aim_fast, tiny, trained, tmp_path, options, said):
    options = [trained if option == "RUN" else option for option in options]
    status, out, err = aim_fast("train", *tiny, *options, "--output", tmp_path / "run", "--quiet")
    assert (status, out) == (2, ""), err
    assert re.search(said, err), err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_time_limit_ends_a_run_at_a_step_and_it_goes_on_to_the_same_end(aim_fast, tiny, trained, tmp_path):
    run = tmp_path / "run"
    status, out, err = aim_fast("train", *tiny, "--epochs", 2, "--time-limit", "0s", "--output", run, "--quiet")
    assert status == 0, err
    assert "stopped by the time limit after step 1 and saved; go on with" in out
    status, out, err = aim_fast("train", "--output", run, "--resume", "--time-limit", "1h", "--quiet")
    assert status == 0, err
    assert losses(run) == losses(trained)
    assert all(torch.equal(tensor, adapters(trained)[name]) for name, tensor in adapters(run).items())


@pytest.mark.slow
def test_training_ends_when_its_validations_do_not_get_better_and_stays_ended(aim_fast, tiny, tmp_path):
    run = tmp_path / "run"
    options = (*tiny, "--epochs", 9, "--lr", 0, "--patience", 2, "--patience-metric", "loss", "--output", run)
    status, _, err = aim_fast("train", *options)
    assert status == 0, err
    assert "ends after epoch 3: 2 validations in a row were no better in loss" in err
    before = losses(run)
    assert aim_fast("train", "--output", run, "--resume", "--quiet")[0] == 0
    assert losses(run) == before
    assert max(step for _, step, _ in before) == 15


@pytest.mark.slow
def test_a_batch_size_is_measured_and_kept(aim_fast, tiny, tmp_path):
    run = tmp_path / "run"
    options = (*tiny, "--epochs", 1, "--batch-size", "auto", "--total-batch-size", 8, "--device", "cpu")
    status, _, err = aim_fast("train", *options, "--output", run)
    assert status == 0, err
    assert "batch size 8, the most that this run can take: measured on cpu" in err
    assert saved_recipe(run).optimisation.batch_size == 8
    typed = tmp_path / "typed"
    options = (*tiny, "--epochs", 1, "--batch-size", 8, "--total-batch-size", 8, "--device", "cpu")
    assert aim_fast("train", *options, "--output", typed, "--quiet")[0] == 0
    assert losses(run) == losses(typed)
    assert aim_fast("train", "--output", run, "--batch-size", "auto", "--resume", "--quiet")[0] == 0
    status, _, err = aim_fast("eval", run, "--batch-size", "auto")
    assert status == 2
    assert "batch_size auto is of train" in err


def test_a_learning_rate_is_suggested_and_no_run_touched(aim_fast, tiny, trained, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    folder = tmp_path / "sweep"
    status, out, err = aim_fast("find-lr", *tiny, "--steps", 25, "--from", 1e-5, "--output", folder, "--quiet")
    assert status == 0, err
    assert sorted(path.name for path in folder.iterdir()) == ["learning_rate.csv", "learning_rate.png"]
    rows = list(csv.DictReader((folder / "learning_rate.csv").open()))
    assert float(rows[0]["lr"]) == pytest.approx(1e-5)
    assert len(rows) <= 25
    assert Image.open(folder / "learning_rate.png").size[0] > 400
    assert "suggest" in out
    status, _, err = aim_fast("find-lr", *tiny, "--output", trained, "--quiet")
    assert status == 2
    assert "is a run, which stays as it is" in err
    assert aim_fast("find-lr", *tiny, "--from", 1, "--to", 0.1, "--output", folder, "--quiet")[0] == 2
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_two_processes_take_the_balanced_clips_of_one(tiny, tmp_path):
    options = ("train", *tiny, "--epochs", 1, "--balanced-sampling", "--class-weights", "balanced", "--device", "cpu")
    finish(start(*options, "--output", tmp_path / "one", "--quiet"))
    options = [4 if before == "--batch-size" else option for before, option in zip((None, *options), options)]
    finish(start(*options, "--output", tmp_path / "two", "--quiet", processes=2))
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert [row[:2] for row in one] == [row[:2] for row in two]
    assert [row[2] for row in one] == pytest.approx([row[2] for row in two], rel=1e-4)
