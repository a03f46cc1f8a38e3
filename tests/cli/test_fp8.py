"""A run with `--precision fp8`: it goes on to the bit, its folder says so, and it is scored in bf16 unless asked."""

import json

import yaml

from aim_fast.models.trunks.clip import CLIPViT
from tests.cli.stopped_runs import train_and_resume


def test_a_run_in_fp8_goes_on_to_the_bit_and_is_scored(aim_fast, motion_set, trunk, tmp_path, monkeypatch):
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, "--device", "cpu")
    sizes = ("--frames", 4, "--batch-size", 8, "--epochs", 1, "--lr", 1e-3, "--drop-path", 0.2, "--memory", "balanced")
    options = ("--model", "aim_vit_demo", *data, *sizes, "--precision", "fp8")
    whole = train_and_resume(aim_fast, monkeypatch, CLIPViT, options, tmp_path)
    assert yaml.safe_load((whole / "recipe.yaml").read_text())["run"]["precision"] == "fp8"
    protocols = []
    for precision in ((), ("--precision", "fp8"), ("--precision", "bf16")):
        status, out, err = aim_fast("eval", whole, *precision, "--json", "-", "--device", "cpu")
        assert status == 0, err
        protocols.append(json.loads(out)["protocol"])
    assert [protocol.endswith("bfloat16, frozen products in fp8") for protocol in protocols] == [False, True, False]
    status, _, err = aim_fast("train", "--output", whole, "--resume", "--precision", "bf16")
    assert (status, err.count("\n")) == (2, 1)
    assert "precision" in err


def test_a_model_whose_trunk_trains_is_refused_in_a_line(aim_fast, motion_set, trunk, tmp_path):
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, "--device", "cpu")
    output = ("--output", tmp_path / "run", "--precision", "fp8")
    status, _, err = aim_fast("train", "--trunk", "vit_demo", "--method", "full", *data, *output)
    assert (status, err.count("\n")) == (2, 1)
    assert "precision fp8 is for the products of a frozen trunk" in err
    assert not (tmp_path / "run").exists()
