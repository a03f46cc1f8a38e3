"""X-CLIP and ActionCLIP from the command line: a run, its resumption to the bit, other classes, a file of it."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from aim_fast.models.trunks.clip import CLIPViT
from tests.cli.stopped_runs import train_and_resume

pytestmark = pytest.mark.stack

OPTIONS = {
    "x_clip": ("--mixup", 0.8, "--label-smoothing", 0.1),
    "actionclip": ("--label-smoothing", 0, "--fusion-layers", 2),
}


@pytest.fixture(scope="module")
def other_set(tmp_path_factory, motion_set):
    """Some of the clips as class folders, under names that no training has seen."""
    root = tmp_path_factory.mktemp("other")
    for number, video in enumerate(sorted((motion_set / "20bn-something-something-v2").glob("*.webm"))[:12]):
        folder = root / ("train" if number < 6 else "val") / ("swimming", "RidingABike", "eating soup")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, folder)
    return root


@pytest.mark.parametrize("method", OPTIONS)
def test_a_run_goes_on_to_the_bit_scores_other_classes_and_is_converted(
    method, aim_fast, motion_set, other_set, towers, tmp_path, monkeypatch
):
    data = ("--dataset", "ssv2", "--data-root", motion_set)
    sizes = ("--frames", 4, "--batch-size", 8, "--epochs", 1, "--lr", 1e-4, "--device", "cpu", "--cutmix", 0)
    options = ("--trunk", "vit_demo", "--method", method, *OPTIONS[method], *data, "--weights", towers, *sizes)
    whole = train_and_resume(aim_fast, monkeypatch, CLIPViT, options, tmp_path)
    held = load_file(whole / "checkpoints" / "last" / "adapters.safetensors").keys()
    assert any(name.startswith("text.") for name in held) is (method == "actionclip")
    where = ("--dataset", "folder", "--data-root", other_set, "--json", "-")
    status, out, err = aim_fast("eval", whole, *where)
    assert status == 0, err
    assert "zero-shot: 3 of 3 classes were not trained on" in err
    loss = json.loads(out)["loss"]
    assert aim_fast("convert", whole, tmp_path / "one.safetensors")[0] == 0
    status, out, err = aim_fast("eval", tmp_path / "one.safetensors", *where)
    assert status == 0, err
    assert json.loads(out)["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--method", "actionclip", "--mixup", 0.8), "a loss between the clips of a batch takes whole labels"),
        (("--method", "actionclip", "--head", "linear", "--trunk", "vit_imagenet_demo"), "no CLIP text tower"),
        (("--method", "x_clip", "--head", "attentive"), "has a head of its own and takes no head attentive"),
        (("--method", "x_clip", "--fusion-layers", 2), "takes no --fusion-layers"),
        (("--method", "x_clip", "--lr-factors", "mesage=2"), "no parameter that trains is named mesage"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_written(wrong, said, aim_fast, motion_set, towers, tmp_path):
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", towers, "--output", tmp_path / "run")
    status, _, err = aim_fast("train", "--trunk", "vit_demo", *data, "--frames", 4, "--batch-size", 8, *wrong)
    assert status == 2
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_recipe_of_another_methods_fields_says_so_where_it_has_them(aim_fast, motion_set, towers, tmp_path):
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", towers, "--output", tmp_path / "run")
    (tmp_path / "mine.yaml").write_text(
        "extends: k400_b16_8f\nmodel:\n  model: vit_demo\n  method: x_clip\nst_adapter:\n  adapter_width: 64\n"
    )
    status, _, err = aim_fast("train", "--recipe", tmp_path / "mine.yaml", *data)
    assert status == 2
    assert "mine.yaml, line 6: adapter_width is a field of st_adapter, which method x_clip does not take" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
