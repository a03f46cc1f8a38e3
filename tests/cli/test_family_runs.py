"""A run on a trunk of every family: stopped, resumed, averaged, evaluated and converted, every bit kept."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from aim_fast.models.entry import Entry
from aim_fast.models.registry import MODELS
from aim_fast.models.trunks.timm import TimmViT, sizes_of
from tests.cli.stopped_runs import adapters, train_and_resume
from tests.models.small_families import EVERY_FAMILY, SIZES, side, small

# Every method and head, each with several families; the first two stand for all in the quick suite.
PARTS = [("aim", "attentive"), ("timesformer", "linear"), ("full", "attentive"), ("probe", "attentive")]
PARTS += [("aim", "linear"), ("timesformer", "attentive"), ("full", "linear"), ("probe", "linear")]
CASES = [(family, *PARTS[number % len(PARTS)]) for number, family in enumerate(EVERY_FAMILY)]


@pytest.mark.parametrize(
    ("family", "method", "head"), [*CASES[:2], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[2:])]
)
def test_a_run_is_resumed_averaged_evaluated_and_converted(
    family, method, head, aim_fast, motion_set, tmp_path, monkeypatch
):
    sizes = {**sizes_of(family), **SIZES, "img_size": side(family), "architecture": family}
    monkeypatch.setitem(MODELS, "aim_small", Entry(TimmViT, sizes))
    save_file({key: value.float() for key, value in small(family).state_dict().items()}, tmp_path / "t.safetensors")
    data = ("--dataset", "ssv2", "--data-root", motion_set)
    options = (*data, "--trunk", "small", "--method", method, "--head", head, "--weights", tmp_path / "t.safetensors")
    options += ("--frames", 2, "--batch-size", 8, "--epochs", 1, "--log-every", 1, "--ema", 0.5)
    options += ("--head-dropout", 0.5, *(("--drop-path", 0.2) if method in ("aim", "timesformer") else ()))
    whole = train_and_resume(aim_fast, monkeypatch, TimmViT, options, tmp_path)
    saved = adapters(whole)
    raw = torch.load(whole / "checkpoints" / "last" / "state.pt", weights_only=True)["trainable"]
    assert any(not torch.equal(raw[key], saved[key]) for key in saved)  # the average is not the last step

    for source, target in (("whole", "one.safetensors"), ("one.safetensors", "run"), ("run", "two.safetensors")):
        status, _, err = aim_fast("convert", tmp_path / source, tmp_path / target)
        assert status == 0, err
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert not [key for key in one if not torch.equal(one[key], two[key])]
    scores = [
        json.loads(aim_fast("eval", tmp_path / name, *data, "--json", "-")[1])["top1"]
        for name in ("whole", "run", "one.safetensors")
    ]
    assert len(set(scores)) == 1
