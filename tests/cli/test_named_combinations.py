"""A trunk, a method and a head as words of the command line: what is one model under two names, and what is told."""

import json

import pytest

from tests.cli.stopped_runs import losses


def test_a_run_goes_on_under_any_name_of_its_model(aim_fast, tiny, tmp_path):
    run = ("--output", tmp_path / "run", "--quiet")
    parts = [word for word in tiny if word not in ("--model", "aim_vit_demo")]
    status, _, err = aim_fast("train", *parts, "--trunk", "vit_demo", "--epochs", 1, *run)
    assert status == 0, err
    before = losses(tmp_path / "run")
    for name in ("aim_vit_demo", "vit_demo"):
        for method in ((), ("--method", "aim")):
            status, _, err = aim_fast("train", "--resume", "--model", name, *method, *run)
            assert status == 0, err
    assert losses(tmp_path / "run") == before
    for odd in (("--model", "aim_vit_imagenet_demo"), ("--method", "probe"), ("--head", "attentive")):
        status, _, err = aim_fast("train", "--resume", *odd, *run)
        assert status == 2
        assert f"{odd[0][2:]}: " in err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("train", "--trunk", "vit_b61_clip"), "did you mean 'vit_b16_clip'?"),
        (("train", "--model", "aim_vit_b61_clip"), "did you mean 'aim_vit_b16_clip'?"),
        (("models", "swim_b"), "did you mean 'swin_b'?"),
        (("models", "promptclip_b61"), "did you mean 'promptclip_b16'?"),
        (("eval", "runs/x", "--trunk", "vit_b16_clip"), "no option --trunk: a run or a checkpoint says itself"),
        (("predict", "runs/x", "clip.mp4", "--method", "aim"), "no option --method: a run or a checkpoint says itself"),
        (("convert", "runs/x", "y", "--head", "text"), "no option --head: a run or a checkpoint says itself"),
        (("models", "--parts", "--views", "3"), "leave one of the two out"),
        (("features", "--trunk", "vit_demo", "--model", "vit_demo", "--output", "x"), "keep one"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(aim_fast, typed, said):
    status, _, err = aim_fast(*typed)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1


def test_a_name_that_cannot_have_so_many_frames_is_told(aim_fast):
    status, out, err = aim_fast("models", "aim_swin_demo", "aim_vit_demo", "--frames", 3, "--json")
    assert status == 0, err
    assert {row["name"] for row in json.loads(out)} == {"aim_vit_demo"}
    assert err.startswith("left out: aim_swin_demo, 3 frames: ")
    assert err.count("\n") == 1
    status, _, err = aim_fast("models", "aim_swin_demo", "--frames", 3)
    assert status == 2
    assert "no multiple of the 2 frames of a patch" in err


def test_a_table_of_all_models_says_first_that_it_takes_a_while(aim_fast, monkeypatch):
    from aim_fast.studies import model_table

    monkeypatch.setattr(model_table, "list_models", lambda: ["aim_vit_demo"])
    monkeypatch.setattr(model_table, "published_results", lambda: ())
    status, out, err = aim_fast("models")
    assert status == 0, err
    assert "aim_vit_demo" in out
    assert "counting every model" in err


def test_the_usual_folder_of_a_run_names_method_and_head(aim_fast, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = (*tiny, "--method", "probe", "--head", "attentive", "--epochs", 0, "--quiet")
    status, _, err = aim_fast("train", *options)
    assert status == 0, err
    assert (tmp_path / "runs" / "ssv2-aim_vit_demo-probe-attentive-4f" / "recipe.yaml").is_file()


def test_features_of_a_trunk_are_those_of_its_model(aim_fast, tiny, tmp_path):
    options = (*tiny[: tiny.index("--model")], "--method", "probe", "--frames", 2, "--batch-size", 8, "--quiet")
    for kind, name in (("--trunk", "vit_demo"), ("--model", "aim_vit_demo")):
        status, _, err = aim_fast("features", *options, kind, name, "--output", tmp_path / name)
        assert status == 0, err
    first, second = (tmp_path / name / "validation" for name in ("vit_demo", "aim_vit_demo"))
    files = sorted(file.name for file in first.iterdir() if file.suffix not in (".json", ".jsonl"))
    assert files
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
