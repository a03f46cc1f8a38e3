"""Input that cannot be: one line on stderr, what, where and what to do; status 2; no traceback; nothing left."""

import json
import os
import shutil

import pytest
import torch

from aim_fast.data.formats import DATASETS


@pytest.fixture
def refused(aim_fast, tmp_path):
    """Runs a command that must be refused, and returns its one line."""

    def run(*arguments, output=None):
        before = sorted(tmp_path.rglob("*"))
        status, out, err = aim_fast(*arguments)
        lines = [line for line in err.splitlines() if line]
        assert status == 2, err
        assert len(lines) == 1, err
        assert lines[0].startswith("aim-fast: error: ")
        assert "Traceback" not in err
        assert out == ""
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
        return lines[0]

    return run


@pytest.fixture
def dataset(motion_set, tmp_path):
    """A copy of the small data set that a test may damage."""
    root = tmp_path / "ssv2"
    shutil.copytree(motion_set, root, ignore=shutil.ignore_patterns(".aim-fast"))
    return root


def train(root, trunk, *more):
    return ("train", "--dataset", "ssv2", "--data-root", root, "--weights", trunk, "--model", "aim_vit_demo",
            "--frames", 4, "--epochs", 1, "--output", root.parent / "run", *more)  # fmt: skip


def test_unknown_words_name_the_nearest_right_one(refused, motion_set, trunk):
    assert "did you mean 'train'?" in refused("trian")
    assert "--model" in refused("train", "--modle", "x")
    unknown = ("--dataset", "ssv3", "--data-root", motion_set, "--weights", trunk, "--output", "none")
    assert "did you mean 'ssv2'?" in refused("train", *unknown)
    options = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk)
    assert "aim_vit_b16_clip" in refused("train", *options, "--model", "aim_vit_b16_clp", "--output", "none")
    assert "did you mean" in refused("train", *options, "--recipe", "ssv2_b16_9f")


def test_no_weights_names_the_options_and_random_must_be_typed(refused, motion_set, tmp_path, aim_fast):
    options = ("--dataset", "ssv2", "--data-root", motion_set, "--model", "aim_vit_demo", "--frames", 4, "--epochs", 1)
    line = refused("train", *options, "--output", tmp_path / "run")
    assert all(word in line for word in ("CLIP", "open_clip", "random"))
    assert aim_fast("train", *options, "--weights", "random", "--output", tmp_path / "run", "--quiet")[0] == 0


def test_no_data_set_or_folder(refused, trunk, tmp_path):
    output = ("--output", tmp_path / "run")
    assert "--dataset" in refused("train", "--recipe", "finetune_b16", "--weights", trunk, *output)
    assert "--data-root" in refused("train", "--dataset", "ssv2", "--weights", trunk, *output)


@pytest.mark.parametrize("dataset_name", DATASETS)
@pytest.mark.parametrize("what", ["missing", "empty"])
def test_missing_and_empty_folders(refused, tmp_path, trunk, dataset_name, what):
    root = tmp_path / "data"
    if what == "empty":
        root.mkdir()
    data = ("--dataset", dataset_name, "--data-root", root, *(("--multi-label",) if dataset_name == "charades" else ()))
    for command in ("train", "index"):
        options = ("--weights", trunk, "--output", tmp_path / "run") if command == "train" else ()
        assert str(root) in refused(command, *data, *options)


@pytest.mark.parametrize("file", ["train.json", "labels.json"])
@pytest.mark.parametrize("damage", ["gone", "malformed", "other"])
def test_annotations_that_are_missing_or_malformed(refused, dataset, trunk, file, damage):
    path = dataset / file
    if damage == "gone":
        path.unlink()
    elif damage == "malformed":
        path.write_text(path.read_text()[:-20])
    else:
        path.write_text('"text"')
    line = refused(*train(dataset, trunk))
    assert file in line or damage == "gone"


def test_a_template_that_is_not_in_the_labels(refused, dataset, trunk):
    rows = json.loads((dataset / "train.json").read_text())
    rows[3]["template"] = "Juggling [something]"
    (dataset / "train.json").write_text(json.dumps(rows))
    line = refused(*train(dataset, trunk))
    assert "Juggling [something]" in line
    assert "labels.json" in line


def test_missing_and_broken_videos_are_named_counted_and_do_not_stop_training(aim_fast, dataset, trunk):
    from aim_fast.training.metrics import read_metrics

    videos = dataset / "20bn-something-something-v2"
    (videos / "1.webm").unlink()
    (videos / "2.webm").write_bytes(b"")
    (videos / "3.webm").write_text("this is no video")
    (videos / "4.webm").write_bytes((videos / "4.webm").read_bytes()[:1500])
    status, out, err = aim_fast("index", "--dataset", "ssv2", "--data-root", dataset)
    assert status == 0
    assert all(f"{number}.webm" in out + err for number in (1, 2, 3, 4))
    assert "36 of 40" in out
    status, _, err = aim_fast("index", "--dataset", "ssv2", "--data-root", dataset, "--strict")
    assert status == 2
    status, _, err = aim_fast(*train(dataset, trunk))
    assert status == 0, err
    (counts,) = [row for row in read_metrics(dataset.parent / "run") if row["kind"] == "data"]
    assert (counts["missing"], counts["broken"], counts["replaced"]) == (1, 3, 4)


def test_an_unreadable_index_says_how_to_make_it_anew(aim_fast, dataset, trunk):
    index = ("index", "--dataset", "ssv2", "--data-root", dataset)
    assert aim_fast(*index)[0] == 0
    for path in (dataset / ".aim-fast").iterdir():
        path.write_bytes(b"garbage")
    for command in (index, train(dataset, trunk)):
        status, out, err = aim_fast(*command)
        assert (status, out) == (2, "")
        assert "--rebuild" in err.splitlines()[-1]
    assert not (dataset.parent / "run").exists()
    assert aim_fast(*index, "--rebuild")[0] == 0
    assert aim_fast(*index)[0] == 0


def test_all_videos_missing_is_refused(refused, dataset, trunk):
    for path in (dataset / "20bn-something-something-v2").iterdir():
        path.unlink()
    assert "20bn-something-something-v2" in refused("index", "--dataset", "ssv2", "--data-root", dataset)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_permission_is_refused(refused, motion_set, trunk, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "cannot be written" in refused(*train(motion_set, trunk, "--output", locked / "run"))


def test_an_output_below_a_file_is_refused(refused, motion_set, trunk, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(*train(motion_set, trunk, "--output", tmp_path / "file" / "run"))


@pytest.mark.parametrize("kind", ["gone", "truncated", "text", "empty", "pickle", "other"])
def test_weights_that_cannot_be_used(refused, motion_set, trunk, tmp_path, kind):
    path = tmp_path / "weights.safetensors"
    if kind == "truncated":
        path.write_bytes(trunk.read_bytes()[:-1000])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        torch.save({"a": [1, "two"]}, path)
    elif kind == "other":
        from aim_fast import create_model
        from aim_fast.models.loading import save_trunk

        save_trunk(create_model("aim_vit_demo", embed_dim=32, num_heads=2), path)
    line = refused(*train(motion_set, path, "--output", tmp_path / "run"))
    assert str(path) in line


@pytest.mark.parametrize("views", ["3", "1x2", "0x1", "axb"])
def test_views_that_are_not_clips_by_crops(refused, trained, views):
    assert "CLIPSxCROPS" in refused("eval", trained, "--views", views)


def test_predicting_from_what_is_no_run(refused, tmp_path, motion_set):
    video = next(motion_set.rglob("*.webm"))
    assert "does not exist" in refused("predict", tmp_path / "none", video)
    assert "checkpoint" in refused("predict", motion_set, video)


@pytest.mark.parametrize("kind", ["gone", "empty", "text", "truncated", "audio", "one frame", "short"])
def test_videos_that_cannot_be_predicted(refused, trained, motion_set, tmp_path, kind):
    source = next(motion_set.rglob("*.webm")).read_bytes()
    path = tmp_path / "clip.webm"
    if kind in ("empty", "text", "truncated"):
        path.write_bytes({"empty": b"", "text": b"no video", "truncated": source[: len(source) // 2]}[kind])
    elif kind in ("one frame", "short"):
        from aim_fast.demo.moving_objects import render_clip, write_clip

        write_clip(path, render_clip(0, 0)[0][: 1 if kind == "one frame" else 3])
    elif kind == "audio":
        write_audio(path)
    assert "clip.webm" in refused("predict", trained, path)


def test_a_short_video_is_predicted_when_asked_for(aim_fast, trained, tmp_path):
    from aim_fast.demo.moving_objects import render_clip, write_clip

    path = tmp_path / "clip.webm"
    write_clip(path, render_clip(0, 0)[0][:3])
    status, out, _ = aim_fast("predict", trained, path, "--repeat-frames", "--json")
    assert status == 0
    assert json.loads(out)[0]["video"] == str(path)


def test_one_bad_file_does_not_lose_the_others(aim_fast, trained, motion_set, tmp_path):
    good = next(motion_set.rglob("*.webm"))
    bad = tmp_path / "bad.webm"
    bad.write_text("no video")
    status, out, err = aim_fast("predict", trained, bad, good, "--json")
    assert status == 2
    unread, predicted = json.loads(out)
    assert (unread["video"], predicted["video"]) == (str(bad), str(good))
    assert "predictions" not in unread
    assert err.splitlines()[-1] == f"aim-fast: error: {unread['error']}"
    assert "bad.webm" in unread["error"]
    assert len(predicted["predictions"]) == 5


def test_evaluating_on_other_classes_is_refused(refused, trained, dataset):
    labels = json.loads((dataset / "labels.json").read_text())
    (dataset / "labels.json").write_text(json.dumps({**labels, "Juggling something": str(len(labels))}))
    assert "Juggling something" in refused("eval", trained, "--data-root", dataset)


def test_a_label_of_validation_that_training_lacks_is_refused_before_training(refused, trunk, motion_set, tmp_path):
    first, second, third = sorted(motion_set.rglob("*.webm"))[:3]
    (tmp_path / "train.txt").write_text(f"{first} 0\n{second} 1\n")
    options = ("--dataset", "list", "--data-root", tmp_path, "--weights", trunk, "--model", "aim_vit_demo")
    (tmp_path / "val.txt").write_text(f"{third} 7\n")
    assert "'7'" in refused("train", *options, "--output", tmp_path / "run")
    (tmp_path / "train.txt").write_text(f"{first} turning left\n{second} 1\n")
    (tmp_path / "val.txt").write_text(f"{third} 0\n")
    assert "'0'" in refused("train", *options, "--output", tmp_path / "run")


def test_a_bare_trunk_is_no_trained_model(refused, trunk, motion_set):
    video = next(motion_set.rglob("*.webm"))
    assert "no trained model" in refused("predict", trunk, video, "--model", "aim_vit_demo")
    data = ("--dataset", "ssv2", "--data-root", motion_set)
    assert "no trained model" in refused("eval", trunk, *data, "--model", "aim_vit_demo")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--model", "aim_vit_b16_clip", "was trained with aim_vit_demo"),
        ("--frames", 8, "was trained with 4"),
        ("--adapter-scale", 0.1, "was trained with 1.0"),
        ("--device", "foo", "must be auto, cpu, cuda"),
        ("--precision", "int8", "must be one of auto, bf16"),
        ("--json", "/", "cannot be written"),
        ("--confusion", "/none/x.png", "cannot be written"),
    ],
)
def test_options_that_a_run_cannot_be_evaluated_with(refused, trained, option, value, says):
    assert says in refused("eval", trained, option, value)


def test_evaluating_what_is_not_there(refused, tmp_path):
    assert "does not exist" in refused("eval", tmp_path / "none")
    assert "holds no checkpoint" in refused("eval", tmp_path)
    assert "holds no checkpoint" in refused("predict", tmp_path, "a.mp4")


def test_a_step_larger_than_the_total_batch_is_told(aim_fast, motion_set, trunk, tmp_path):
    for total, told in ((8, False), (4, True)):
        options = ("--batch-size", 8, "--total-batch-size", total, "--epochs", 0, "--output", tmp_path / str(total))
        status, _, err = aim_fast(*train(motion_set, trunk, *options))
        assert status == 0, err
        assert (f"a step is larger than total_batch_size {total}: 8 clips x 1 processes" in err) == told


def test_a_converted_run_is_not_resumed(refused, aim_fast, trained, tmp_path):
    assert aim_fast("convert", trained, tmp_path / "run.pth")[0] == 0
    assert aim_fast("convert", tmp_path / "run.pth", tmp_path / "converted")[0] == 0
    assert "holds no optimiser" in refused("train", "--output", tmp_path / "converted", "--resume")


def test_one_class_is_nothing_to_train_on(refused, motion_set, trunk, tmp_path):
    (tmp_path / "videos" / "only").mkdir(parents=True)
    for video in sorted(motion_set.rglob("*.webm"))[:8]:
        shutil.copy(video, tmp_path / "videos" / "only")
    options = ("--dataset", "folder", "--data-root", tmp_path / "videos", "--weights", trunk, "--model", "aim_vit_demo")
    assert "one class ('only')" in refused("train", *options, "--output", tmp_path / "run")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--lr", "nan"), ("--lr", "inf"), ("--workers", 999999), ("--adapters", "joint,joint"), ("--drop-path", 1)],
)
def test_values_that_no_run_can_have(refused, motion_set, trunk, tmp_path, option, value):
    assert option[2:].replace("-", "_") in refused(
        *train(motion_set, trunk, "--output", tmp_path / "run", option, value)
    )


def test_a_split_without_labels_cannot_be_scored(aim_fast, trained, dataset):
    rows = json.loads((dataset / "validation.json").read_text())
    (dataset / "test.json").write_text(json.dumps([{"id": row["id"]} for row in rows]))
    status, _, err = aim_fast("eval", trained, "--data-root", dataset, "--split", "test")
    assert status == 2
    assert "no labels" in err.splitlines()[-1]


def test_debug_shows_where_an_error_came_from(motion_set):
    from aim_fast.cli import main
    from aim_fast.errors import UsageError

    with pytest.raises(UsageError):
        main(["train", "--dataset", "ssv3", "--debug"])


def write_audio(path):
    import av
    import numpy as np

    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="flt", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_what_the_system_refuses_is_one_line_that_names_the_file(refused, motion_set, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "/somewhere/file")

    monkeypatch.setattr("aim_fast.studies.data_limits.measure_limits", full)
    line = refused("doctor", "--dataset", "ssv2", "--data-root", motion_set)
    assert "/somewhere/file: No space left on device" in line
