"""`aim-fast --help`, `models`, `doctor`, `index`, and the whole of the demo."""

import json
import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.stack


def test_help_answers_within_a_second_and_imports_nothing_heavy():
    program = (
        "import sys\nfrom aim_fast.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'nvidia.dali', 'av', 'matplotlib', 'timm', 'open_clip', 'transformers'} & set(sys.modules)\n"
        "print('HEAVY', heavy)"
    )
    times = []  # of a core, whatever runs beside
    for _ in range(3):
        start = sum(os.times()[2:4])
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        times.append(sum(os.times()[2:4]) - start)
        assert result.stdout.strip().endswith("HEAVY set()")
        assert all(command in result.stdout for command in ("train", "eval", "predict", "demo", "doctor"))
    assert min(times) < 1.0


def test_every_command_explains_itself(aim_fast):
    from aim_fast.cli import COMMANDS

    for command in COMMANDS:
        status, out, _ = aim_fast(command, "--help")
        assert status == 0
        assert "Usage: aim-fast" in out


def test_the_same_names_in_every_command(aim_fast):
    _, out, _ = aim_fast("train", "--help")
    for option in ("--model", "--frames", "--weights", "--epochs", "--batch-size", "--lr", "--seed", "--device",
                   "--precision", "--workers", "--output", "--resume", "--recipe"):  # fmt: skip
        assert f"{option} " in out


def test_help_tells_what_an_option_is_when_it_is_not_typed(aim_fast):
    def default(command, option):
        text = " ".join(aim_fast(command, "--help")[1].partition("Options:")[2].split())
        entry = re.split(r" (?=--[a-z])", text[text.index(f" {option} ") + 1 :])[0]
        found = re.search(r"\[default: (.*?)\]", entry)
        return found and found[1]

    by_recipe = {
        "--epochs": "50",
        "--drop-path": "0.2",
        "--adapters": "spatial,temporal,joint",
        "--randaugment": "none",
    }
    for option, text in by_recipe.items():
        assert default("train", option) == f"chosen by recipe, else {text}"
    fixed = {"--data-share": "1.0", "--no-compile": "no", "--memory": "fast", "--output": None}
    for option, text in fixed.items():
        assert default("train", option) == text
    assert default("eval", "--views") == "the run's"
    assert default("eval", "--device") == "auto"
    assert default("demo", "--epochs") == "9"
    assert default("index", "--dataset") is None
    assert "chosen by recipe, else promptclip_b16]" in " ".join(aim_fast("features", "--help")[1].split())
    assert default("convert", "--adapter-scale") == "what RUN|CHECKPOINT says, else 0.5"


def test_the_list_of_commands_is_not_cut_short(aim_fast):
    assert "..." not in aim_fast("--help")[1].partition("Commands:")[2]


def test_models_prints_the_published_costs(aim_fast):
    status, out, _ = aim_fast("models", "aim_vit_b16_clip", "aim_vit_l14_clip", "--json")
    assert status == 0
    rows = [row for row in json.loads(out) if row["published"]]
    assert {row["published"]["gflops"] for row in rows if "gflops" in row["published"]} >= {606, 11208, 624, 11508}
    for row in rows:
        if "gflops" in row["published"]:
            assert row["gflops"] == pytest.approx(row["published"]["gflops"], rel=5e-3)
            assert row["views"] == 3
        assert row["published"]["source"]
    options = ("--frames", 4, "--views", 1, "--num-tadapter", 2, "--num-classes", 5)
    status, out, _ = aim_fast("models", "aim_vit_b16_clip", "--dataset", "kinetics400", *options)
    assert status == 0
    (row,) = [line.split() for line in out.splitlines() if line.startswith("aim_vit_b16_clip")]
    assert row[1:4] == ["kinetics400", "4", "1"]
    status, _, err = aim_fast("models", "aim_vit_b16_clip", "--dataset", "kinetics40")
    assert status == 2
    assert "did you mean 'kinetics400'" in err


@pytest.mark.parametrize("option", [("--method", "probe"), ("--head", "linear"), ("--frames", 4), ("--num-classes", 5)])
def test_models_passes_no_option_over_that_a_list_of_parts_has_nothing_to_do_with(aim_fast, option):
    status, _, err = aim_fast("models", "vit_b16_clip", "--parts", *option)
    assert (status, err.count("\n")) == (2, 1)
    assert f"whatever {option[0]}: leave one of the two out" in err


def test_doctor_says_what_there_is(aim_fast):
    status, out, err = aim_fast("doctor", "--json")
    assert status == 0
    facts = json.loads(out)
    assert facts["packages"]["torch"]
    assert set(facts["paths"]) == {"precision", "decoding", "CPU operators", "xformers"}
    assert facts["tuned kernels"]
    assert "XFORMERS" not in err
    assert "decoding" in aim_fast("doctor")[1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--device", "cpu"), "tune: measures a GPU's kernels and the device is cpu"),
        (("--trunk", "vit_b16_clip", "--model", "aim_vit_demo"), "keep one"),
        (("--precision", "fp64"), "fp64"),
    ],
)
def test_tune_refuses_in_a_line(aim_fast, options, line):
    status, _, err = aim_fast("tune", *options)
    assert (status, err.count("\n")) == (2, 1)
    assert line in err


def test_doctor_measures_what_limits_a_data_set(aim_fast, motion_set):
    options = ("doctor", "--dataset", "ssv2", "--data-root", motion_set)
    status, out, _ = aim_fast(*options, "--model", "aim_vit_demo", "--frames", 4, "--json")
    assert status == 0
    found = json.loads(out)["data set ssv2"]
    assert found["clips"] == 40
    assert found["decode"].keys() == {"cpu", "pyav"}
    assert all(rate > 0 for rate in (*found["decode"].values(), found["read_mib"], found["read_clips"], found["step"]))
    data = min(max(found["decode"].values()), found["read_clips"])
    assert (found["limit"] == "the step") == (found["step"] <= data)
    assert found["data_wait"] == pytest.approx(max(0, 1 - data / found["step"]))
    assert found["advice"]
    status, _, err = aim_fast("doctor", "--model", "aim_vit_demo")
    assert (status, "give --dataset" in err) == (2, True)
    status, _, err = aim_fast("doctor", "--dataset", "ssv2")
    assert (status, err.count("\n")) == (2, 1)
    assert "--data-root" in err


def test_doctor_says_what_many_gpus_need(aim_fast, motion_set):
    options = ("--dataset", "ssv2", "--data-root", motion_set, "--model", "aim_vit_demo", "--frames", 4)
    status, out, _ = aim_fast("doctor", *options, "--gpus", 8, "--clips-per-s", 50, "--json")
    assert status == 0
    found = json.loads(out)["data set ssv2"]
    scale = found["needs"]
    assert scale["clips"] == 400
    assert scale["cores"] == pytest.approx(400 * found["threads"] / max(found["decode"].values()), rel=0.01)
    assert scale["read_bytes"] == pytest.approx(400 * found["mean_kib"] * 1024)
    assert scale["copied_bytes_each"] == 50 * 4 * 48 * 48 * 3
    assert "8 GPUs" in aim_fast("doctor", *options, "--gpus", 8)[1]
    for wrong in (("--gpus", 8), ("--clips-per-s", 50), (*options, "--gpus", 0)):
        status, _, err = aim_fast("doctor", *wrong)
        assert (status, err.count("\n")) == (2, 1)


def test_index_counts_and_scans_again_only_what_changed(aim_fast, motion_set, tmp_path):
    import shutil

    root = tmp_path / "set"
    shutil.copytree(motion_set, root)
    status, out, _ = aim_fast("index", "--dataset", "ssv2", "--data-root", root)
    assert status == 0
    assert "40 of 40" in out
    assert "16 of 16" in out


@pytest.mark.slow
def test_the_demo_runs_from_nothing_to_its_table(tmp_path):
    """Everything of the demo with few clips and steps; the accuracies are what `make demo` is for."""
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "aim_fast", "demo", "--output", str(folder), "--clips", "48", "--stills", "128",
               "--still-steps", "4", "--epochs", "1"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {"aim_top1", "frozen_top1", "chance", "seconds"}
    assert summary["chance"] == 1 / 8
    assert "frozen space-only" in result.stdout
    for name in ("curves.png", "confusion.png", "aim/metrics.jsonl", "frozen/recipe.yaml", "data/labels.json"):
        assert (folder / name).exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
