"""Names that people give, of folders, classes, files and every output, from the index to an ablation."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

NAMES = {
    "dollars": "$1_vs_$10 $x^2$",
    "one dollar": r"$\frac{",
    "percent and braces": "100%s %d {0} {}",
    "quotes": 'it\'s "so" `x`',
    "colon": "12:30",
    "dash": "-rf --help",
    "bytes": os.fsdecode(b"caf\xe9 \xff"),
    "right to left": "שלום \u202etxt",
    "brackets": "[red]a[bold] #&;*?|<b>",
    "line": "two\nlines",
    "accents": "Café über 猫",
}
COMMON = ("--model", "aim_vit_demo", "--device", "cpu", "--frames", 4, "--batch-size", 4, "--total-batch-size", 4)


@pytest.fixture(scope="module")
def videos(motion_set):
    found = sorted(motion_set.rglob("*.webm"))
    assert len(found) >= 8
    return found


def data_set(folder, name, videos):
    """Two classes, one of them called ``name``, three clips of each in train and one in val, files called so too."""
    for split, first in (("train", 0), ("val", 6)):
        for number in range(6 if split == "train" else 2):
            target = folder / split / (name, "plain")[number % 2] / f"{name} {number}.webm"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(videos[(first + number) % len(videos)], target)
    return folder


def assert_picture(path):
    with Image.open(path) as picture:
        picture.load()
    assert min(picture.size) > 100


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_goes_through_every_command(name, videos, trunk, tmp_path, aim_fast, monkeypatch):
    """Paths are relative, so that a name stands first in them, as a dash or a colon would matter."""
    monkeypatch.chdir(tmp_path)
    root, run, clip = Path(f"{name} data"), Path(f"{name} run"), Path(f"{name} clip.webm")
    data_set(root, name, videos)
    shutil.copy(videos[0], clip)
    shutil.copy(trunk, weights := Path(f"{name} trunk.safetensors"))
    data = ("--dataset", "folder", "--data-root", root)

    def succeeds(*arguments):
        status, out, err = aim_fast(*arguments)
        assert status == 0, err
        assert "Traceback" not in err
        assert "not drawn" not in err
        return out

    assert "6 of 6 clips can be used, 2 classes" in succeeds("index", *data)
    succeeds("train", *COMMON, *data, "--weights", weights, "--epochs", 1, "--output", run)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["data"]["data_root"] == str(root.absolute())
    assert_picture(run / "curves.png")

    scores = succeeds("eval", *COMMON[2:4], "--json", f"{name}.json", "--", run)
    told = json.loads(Path(f"{name}.json").read_text())
    assert {row["class"] for row in told["classes"]} == {name, "plain"}
    assert sum(row["videos"] for row in told["classes"]) == 2
    assert "top-1" in scores
    assert_picture(Path(f"{name}.confusion.png"))

    predicted = json.loads(succeeds("predict", "--json", "--device", "cpu", "--", run, clip))
    assert predicted[0]["video"] == str(clip)
    assert {row["label"] for row in predicted[0]["predictions"]} == {name, "plain"}
    succeeds("predict", "--device", "cpu", "--", run, clip)

    options = ("--timeline", f"{name} times", "--window", 0.5, "--device", "cpu")
    succeeds("predict", *options, "--", run, clip)
    timeline = json.loads((Path(f"{name} times") / f"{clip.name}.json").read_text())
    assert set(timeline["classes"]) == {name, "plain"}
    assert_picture(Path(f"{name} times") / f"{clip.name}.png")

    succeeds("convert", "--", run, f"{name} whole.safetensors")
    scored = succeeds("eval", *data, "--device", "cpu", "--json", "-", "--", f"{name} whole.safetensors")
    assert json.loads(scored)["top1"] == told["top1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAMES["dollars"], NAMES["bytes"], NAMES["colon"]], ids=["dollars", "bytes", "colon"])
def test_a_name_goes_through_a_comparison_and_an_ablation(name, videos, trunk, tmp_path, aim_fast, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = ("aim_vit_demo", "aim_swin_demo")
    files = ("--plot", f"{name}.png", "--csv", f"{name}.csv")
    status, _, err = aim_fast("compare", *models, "--no-speed", "--num-classes", 2, *files)
    assert status == 0, err
    assert_picture(Path(f"{name}.png"))
    with open(f"{name}.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    root = data_set(Path(f"{name} data"), name, videos)
    options = ("--study", "rungs", *COMMON, "--dataset", "folder", "--data-root", root, "--weights", trunk)
    status, _, err = aim_fast("ablate", *options, "--epochs", 0, "--output", f"{name} rungs")
    assert status == 0, err
    assert "not drawn" not in err
    assert_picture(Path(f"{name} rungs") / "table.png")
    assert json.loads((Path(f"{name} rungs") / "table.json").read_text())["rows"]
