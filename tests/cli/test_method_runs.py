"""The methods from the command line, on the demo's clips: a run, its resumption to the bit, its file, and its merge."""

import json

import pytest
from safetensors.torch import load_file

from aim_fast.models.trunks.clip import CLIPViT
from tests.cli.stopped_runs import train_and_resume

pytestmark = pytest.mark.stack

OPTIONS = {
    "st_adapter": ("--adapter-before", "attention,mlp", "--adapter-width", 16),
    "zeroi2v": ("--shift-reach", 2, "--zero-dropout", 0.1),
    "lora": ("--attention-over-time",),
    "bitfit": (),
    "side4video": ("--side-width", 64),
    "dist": ("--dist-width", 64, "--dist-temporal", 8, "--dist-pooling", 1),
    "evl": ("--decoder-layers", 2, "--decoder-dropout", 0.5),
}


@pytest.mark.parametrize("method", OPTIONS)
def test_a_run_goes_on_to_the_bit_and_is_converted(method, aim_fast, motion_set, trunk, tmp_path, monkeypatch):
    data = ("--dataset", "ssv2", "--data-root", motion_set)
    sizes = ("--frames", 4, "--batch-size", 8, "--epochs", 1, "--lr", 1e-3, "--head-dropout", 0.5, "--device", "cpu")
    options = ("--trunk", "vit_demo", "--method", method, *OPTIONS[method], *data, "--weights", trunk, *sizes)
    whole = train_and_resume(aim_fast, monkeypatch, CLIPViT, options, tmp_path)
    status, out, err = aim_fast("eval", whole, "--json", "-")
    assert status == 0, err
    top1 = json.loads(out)["top1"]
    merges = method in ("zeroi2v", "lora")
    status, _, err = aim_fast("convert", whole, tmp_path / "one.safetensors", *(["--merge"] if merges else []))
    assert status == 0, err
    names = load_file(tmp_path / "one.safetensors").keys()
    assert not merges or not [name for name in names if "lora" in name or "MLP_Adapter" in name]
    status, out, err = aim_fast("eval", tmp_path / "one.safetensors", *data, "--json", "-")
    assert status == 0, err
    assert json.loads(out)["top1"] == pytest.approx(top1)
    if not merges:
        status, _, err = aim_fast("convert", whole, tmp_path / "no.safetensors", "--merge")
        assert status == 2
        assert "has nothing here that merges into its trunk" in err


def test_models_and_compare_list_them(aim_fast):
    status, out, err = aim_fast("models", "vit_demo", "--parts")
    assert status == 0, err
    assert all(method in out for method in OPTIONS)
    rows = ("--trunk", "vit_demo", "--method", ",".join(OPTIONS), "--no-speed")
    status, out, err = aim_fast("compare", *rows)
    assert status == 0, err
    assert all(method in out for method in OPTIONS)


@pytest.mark.parametrize("method", OPTIONS)
def test_a_trunk_that_a_method_cannot_stand_on_is_said(method, aim_fast, motion_set, tmp_path):
    options = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", "random", "--output", tmp_path / "run")
    status, _, err = aim_fast("train", "--trunk", "swin_demo", "--method", method, *options)
    assert status == 2
    assert f"takes no method {method}" in err
