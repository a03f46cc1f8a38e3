"""PromptCLIP end to end: from videos and from stored features, few-shot, zero-shot, and what is refused."""

import json

import pytest
import torch

from aim_fast.training.metrics import read_metrics

SIZES = ("--model", "promptclip_demo", "--frames", 4, "--batch-size", 8)


@pytest.fixture
def small(motion_set, clip_file):
    """Options of a command that takes seconds."""
    return ("--dataset", "ssv2", "--data-root", motion_set, "--weights", clip_file, *SIZES)


@pytest.fixture(scope="module")
def features(tmp_path_factory, motion_set, clip_file):
    """Stored features of both splits."""
    from aim_fast.cli import main

    folder = tmp_path_factory.mktemp("features")
    options = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", clip_file, *SIZES, "--precision", "fp32")
    with pytest.raises(SystemExit) as caught:
        main([str(option) for option in ("features", *options, "--output", folder, "--dtype", "float32", "--quiet")])
    assert not caught.value.code
    return folder


def losses(folder):
    return [row["loss"] for row in read_metrics(folder) if row["kind"] == "train"]


def evaluated(aim_fast, *arguments):
    status, out, err = aim_fast("eval", *arguments, "--json", "-", "--precision", "fp32")
    assert status == 0, err
    return json.loads(out), err


def test_a_run_from_videos_is_evaluated_and_predicts(aim_fast, small, motion_set, tmp_path):
    run = tmp_path / "run"
    status, _, err = aim_fast("train", *small, "--epochs", 1, "--output", run, "--quiet")
    assert status == 0, err
    scores, _ = evaluated(aim_fast, run)
    assert (scores["videos"], len(scores["classes"])) == (16, 8)
    assert "5 clips x 1 crops of 48 px, 4 frames spread over the video, drawn at random" in scores["protocol"]
    names = tmp_path / "names.txt"
    names.write_text("a ball rolls\na cat sleeps\n")
    video = next((motion_set / "20bn-something-something-v2").iterdir())
    status, out, err = aim_fast("predict", run, video, "--class-names", names, "--json")
    assert status == 0, err
    found = {row["label"] for row in json.loads(out)[0]["predictions"]}
    assert found == {"a ball rolls", "a cat sleeps"}
    status, out, err = aim_fast("compare", run, "--no-speed", "--json")
    assert status == 0, err
    assert json.loads(out)["rows"][0]["gflops"] > 0


def test_features_are_what_the_frozen_tower_makes_of_the_videos(features, aim_fast, small, tmp_path):
    """A run evaluates alike on its videos and on their stored features: same frames, same numbers."""
    run = tmp_path / "run"
    train = ("train", *small, "--precision", "fp32", "--epochs", 2, "--log-every", 1, "--quiet")
    status, _, err = aim_fast(*train, "--features", features, "--output", run)
    assert status == 0, err
    stored, _ = evaluated(aim_fast, run, "--features", features)
    videos, _ = evaluated(aim_fast, run)
    assert "5 stored views" in stored["protocol"]
    assert stored["loss"] == pytest.approx(videos["loss"], rel=1e-5)
    assert stored["top1"] == videos["top1"]
    assert aim_fast(*train, "--features", features, "--output", tmp_path / "again")[0] == 0
    assert losses(tmp_path / "again") == losses(run)


def test_a_step_of_few_names_trains_and_repeats(features, aim_fast, small, tmp_path):
    few = (
        "train",
        *small,
        "--features",
        features,
        "--batch-size",
        4,
        "--max-names",
        5,
        "--epochs",
        1,
        "--log-every",
        1,
    )
    for name in ("run", "again"):
        status, _, err = aim_fast(*few, "--log-every", 1, "--output", tmp_path / name, "--quiet")
        assert status == 0, err
    assert losses(tmp_path / "run") == losses(tmp_path / "again")
    assert max(losses(tmp_path / "run")[:2]) < 0.5 + torch.tensor(5.0).log()  # of five names, not of eight


def test_five_ways_with_two_shots_are_scored_on_their_five_classes(features, aim_fast, small, tmp_path):
    run, options = tmp_path / "run", ("--features", features, "--classes", 5, "--shots", 2, "--temporal-layers", 0)
    status, _, err = aim_fast("train", *small, *options, "--epochs", 1, "--output", run)
    assert status == 0, err
    assert "train: 10 of its 40 clips are taken, 5 classes" in err
    scores, _ = evaluated(aim_fast, run, "--features", features)
    assert (scores["videos"], len(scores["classes"])) == (10, 5)


def test_classes_never_trained_on_are_scored_by_the_same_prompt(features, aim_fast, small, tmp_path):
    run = tmp_path / "run"
    train = ("train", *small, "--features", features, "--classes", 3, "--epochs", 1, "--output", run, "--quiet")
    assert aim_fast(*train)[0] == 0
    seen, _ = evaluated(aim_fast, run, "--features", features)
    unseen, err = evaluated(aim_fast, run, "--features", features, "--classes", "unseen")
    every, _ = evaluated(aim_fast, run, "--features", features, "--classes", "all")
    names = [{row["class"] for row in scores["classes"]} for scores in (seen, unseen, every)]
    assert [len(found) for found in names] == [3, 5, 8]
    assert not names[0] & names[1]
    assert "zero-shot: 5 of 5 classes were not trained on" in err


def test_another_data_set_is_scored_zero_shot(features, aim_fast, small, motion_set, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    for split in ("train", "val"):
        for name in ("rolling", "jumping"):
            (other / split / name).mkdir(parents=True)
    videos = sorted((motion_set / "20bn-something-something-v2").iterdir())[:4]
    for video, place in zip(videos, ("train/rolling", "train/jumping", "val/rolling", "val/jumping")):
        (other / place / video.name).symlink_to(video)
    assert aim_fast("train", *small, "--features", features, "--epochs", 1, "--output", run, "--quiet")[0] == 0
    scores, err = evaluated(aim_fast, run, "--dataset", "folder", "--data-root", other)
    assert {row["class"] for row in scores["classes"]} == {"rolling", "jumping"}
    assert "zero-shot: 2 of 2 classes" in err


def test_a_classifier_is_not_scored_on_classes_it_was_not_trained_on(trained, aim_fast):
    status, _, err = aim_fast("eval", trained, "--classes", "unseen")
    assert status == 2
    assert "are none of those asked for (unseen)" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--frames", 8), "another trunk or other clips: frames 4, not 8"),
        (("--weights", "random"), "another trunk or other clips: trunk SHA-256"),
        (("--interval", 2), "interval 0, not 2"),
        (("--mixup", 0.2), "mixup and cutmix mix pixels, and --features has none"),
        (("--shots", 9), "too few for 9 shots"),
        (("--prompt-prefix", 60, "--prompt-postfix", 16), "is too long"),
        (("--num-tadapter", 2), "model promptclip_demo takes no --num-tadapter"),
        (("--features", "/none"), "holds no features; write them with aim-fast features"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(options, said, features, aim_fast, small, tmp_path):
    status, _, err = aim_fast("train", *small, "--features", features, *options, "--output", tmp_path / "run")
    assert status == 2
    assert said in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_model_has_features_where_it_has_a_frozen_part(aim_fast, motion_set, trunk, tmp_path):
    options = ("--model", "aim_vit_demo", "--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk)
    status, _, err = aim_fast("features", *options, "--frames", 4, "--output", tmp_path / "f")
    assert status == 2
    assert "use --adapters none, or --adapter-layers top" in err.splitlines()[-1]
    status, _, err = aim_fast("features", *options, "--frames", 4, "--adapters", "none", "--output", tmp_path / "f")
    assert status == 0, err
    run = ("--features", tmp_path / "f", "--epochs", 1, "--output", tmp_path / "run", "--quiet")
    status, _, err = aim_fast("train", *options, "--frames", 4, "--adapters", "none", *run)
    assert status == 0, err
