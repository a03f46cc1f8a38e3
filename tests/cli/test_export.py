"""`aim-fast export`: files that run without the run, and in `predict`, `eval` and `compare` in its place."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aim_fast import load_run
from aim_fast.training.exports import onnx_file
from aim_fast.training.trained_file import write_trained

PAGE = Path(__file__).parent.parent.parent / "docs" / "export.md"


@pytest.fixture(scope="module")
def onnx(trained, tmp_path_factory):
    """The run's ONNX file, and what was said of it."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    from aim_fast.training.export import export

    path, said = tmp_path_factory.mktemp("onnx") / "model", []
    export(str(trained), "onnx", str(path), "float32", (), {}, said.append)
    return path, said[-1]


def shares_of(out):
    return [{row["label"]: row["probability"] for row in one["predictions"]} for one in json.loads(out)]


@pytest.mark.slow
def test_an_onnx_file_predicts_and_scores_as_its_run(aim_fast, trained, motion_set, onnx, tmp_path):
    path, said = onnx
    assert re.search(r"largest difference from the run \S+ .*top-1 equal on 16 of 16 clips, of ssv2 validation", said)
    videos = sorted(motion_set.rglob("*.webm"))[:3]
    found = []
    for model in (trained, path):
        status, out, err = aim_fast("predict", model, *videos, "--top-k", 8, "--json", "--precision", "fp32")
        assert status == 0, err
        found.append(shares_of(out))
    for mine, theirs in zip(*found):
        assert theirs == pytest.approx(mine, abs=1e-5)
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--confusion", tmp_path / "c.png", "--json", "-")
    scores = []
    for model in (trained, path):
        status, out, err = aim_fast("eval", model, *data, "--precision", "fp32")
        assert status == 0, err
        scores.append(json.loads(out))
    assert scores[0]["top1"] == scores[1]["top1"]
    assert scores[1]["loss"] == pytest.approx(scores[0]["loss"], abs=1e-5)
    assert "exported as onnx in float32" in scores[1]["protocol"]


@pytest.mark.slow
def test_the_pages_script_runs_without_this_project(aim_fast, motion_set, onnx, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1])
    video = sorted(motion_set.rglob("*.webm"))[0]
    without = "import sys, runpy; sys.modules.update(aim_fast=None, aim_kernels=None, torch=None); "
    command = [sys.executable, "-I", "-c", f"{without}runpy.run_path(sys.argv.pop(1))", script, onnx[0], video]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    printed = {label: float(share) / 100 for share, label in re.findall(r"([\d.]+) %  (.*)", result.stdout)}
    assert len(printed) == 5
    status, out, _ = aim_fast("predict", onnx[0], video, "--json")
    assert status == 0
    assert printed == pytest.approx(shares_of(out)[0], abs=0.05)  # another library resized the frames


@pytest.mark.slow
def test_an_onnx_file_is_compared_by_its_forward_pass(aim_fast, trained, onnx):
    status, out, err = aim_fast("compare", trained, onnx[0], "--rounds", 1, "--json")
    assert status == 0, err
    run, file = json.loads(out)["rows"]
    assert file["gflops"] == run["gflops"]
    assert file["forward"] > 0
    assert file["train"] is None
    assert file["memory_mib"] is None


@pytest.mark.slow
def test_tensors_that_one_file_cannot_hold_lie_beside_it(aim_fast, trained, onnx, motion_set, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_LARGEST", 1000)
    path = tmp_path / "large.onnx"
    videos = sorted(motion_set.rglob("*.webm"))[:2]
    named = [option for video in videos for option in ("--clips", video)]
    status, out, err = aim_fast(
        "export", trained, "--format", "onnx", "--output", path, *named, "--precision", "float16"
    )
    assert status == 0, err
    assert "2 of 2 clips, of 2 videos named" in out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert aim_fast("predict", path, videos[0])[0] == 0
    (tmp_path / "large.onnx.data").rename(tmp_path / "elsewhere")
    status, _, err = aim_fast("predict", path, videos[0])
    assert status == 2
    assert "no ONNX model that can be opened" in err


@pytest.mark.slow
def test_an_export_that_differs_is_not_written(aim_fast, trained, tmp_path):
    run = load_run(trained, device="cpu", precision="fp32")
    run.model.fc_cls.weight.data *= 1e7  # more than half precision holds
    write_trained(run, tmp_path / "large.safetensors")
    options = ("--format", "pt2", "--precision", "float16", "--output", tmp_path / "large.pt2")
    status, _, err = aim_fast("export", tmp_path / "large.safetensors", *options)
    assert status == 2
    assert re.search(r"not exported as pt2 in float16: largest difference from the run (inf|nan)", err)
    assert "of random pixels" in err
    assert [file.name for file in tmp_path.iterdir()] == ["large.safetensors"]


@pytest.mark.slow
def test_machine_code_gives_the_logits_of_its_run(aim_fast, trained, motion_set, tmp_path):
    path, video = tmp_path / "model.bin", sorted(motion_set.rglob("*.webm"))[0]
    status, out, err = aim_fast("export", trained, "--format", "aoti", "--output", path)
    assert status == 0, err
    assert "top-1 equal on 16 of 16" in out
    status, _, err = aim_fast("predict", path, video)
    assert status == 2
    assert "--run-code" in err
    found = []
    for model in ((trained, "--precision", "fp32"), (path, "--run-code")):
        status, out, err = aim_fast("predict", *model, video, "--json", "--top-k", 8)
        assert status == 0, err
        found.append(shares_of(out)[0])
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_what_cannot_be_exported_is_said_in_one_line(aim_fast, trained, tmp_path):
    there = tmp_path / "there.pt2"
    there.touch()
    cases = [
        (("--format", "pt2", "--output", there), "is there already"),
        (("--format", "pt2", "--output", tmp_path / "none" / "model.pt2"), "cannot be written"),
        (("--format", "aoti", "--backend", "fused"), "has no operators of this project"),
        (("--format", "tflite"), "'tflite' is not one of 'pt2', 'onnx', 'aoti'"),
        (("--format", "pt2", "--output", tmp_path / "m.pt2", "--weights", tmp_path / "gone.pt"), "does not exist"),
        (("--format", "pt2", "--output", tmp_path / "m.pt2", "--clips", tmp_path / "gone.mp4"), "does not exist"),
    ]
    for options, reason in cases:
        status, _, err = aim_fast("export", trained, *options)
        assert status == 2
        assert reason in err
        assert err.count("\n") == 1 or "random" not in err
    assert [file.name for file in tmp_path.iterdir()] == ["there.pt2"]
    assert not there.stat().st_size


@pytest.mark.slow
def test_a_damaged_onnx_file_is_refused(aim_fast, onnx, motion_set, tmp_path):
    content = onnx[0].read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    status, _, err = aim_fast("predict", tmp_path / "cut.onnx", next(motion_set.rglob("*.webm")))
    assert status == 2
    assert "no ONNX model that can be opened" in err
    status, _, err = aim_fast("export", onnx[0], "--format", "pt2", "--output", tmp_path / "m.pt2")
    assert status == 2
    assert "is exported already" in err
