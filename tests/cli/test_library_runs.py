"""Networks of other libraries from the command line, on the demo's clips: weights, a run, its resumption, its file."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

from aim_fast.models.library_model import LibraryModel
from aim_fast.models.registry import create_model
from tests.cli.stopped_runs import train_and_resume

pytestmark = pytest.mark.stack

SMALL = "frames=4,image_size=32"
VIT = f"{SMALL},embed_dim=48,depth=2,num_heads=2"
MODELS = [
    f"torchvision:mvit_v2_s,{SMALL},depth=4,embed_dim=8,doubled=[1,3]",
    f"torchvision:swin3d_b,{SMALL},embed_dim=12,depths=[2,2],num_heads=[1,2],window_size=[2,4,4]",
    f"transformers:timesformer,{VIT}",
    f"transformers:vjepa2_l,{VIT}",
]
needs_transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not here")
every_model = pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=needs_transformers if "transformers" in name else ()) for name in MODELS],
    ids=[name.partition(",")[0] for name in MODELS],
)


@pytest.fixture
def data(motion_set):
    return ("--dataset", "ssv2", "--data-root", motion_set, "--device", "cpu")


@every_model
def test_a_run_goes_on_to_the_bit_and_is_converted(model, aim_fast, data, tmp_path, monkeypatch):
    options = (*data, "--model", model, "--weights", "random", "--batch-size", 8, "--total-batch-size", 8)
    whole = train_and_resume(aim_fast, monkeypatch, LibraryModel, (*options, "--epochs", 1, "--log-every", 1), tmp_path)
    status, out, err = aim_fast("eval", whole, "--views", "1x1", "--json", "-")
    assert status == 0, err
    top1 = json.loads(out)["top1"]
    for file in ("one.safetensors", "one.pth", "again"):
        status, out, err = aim_fast("convert", whole, tmp_path / file)
        assert status == 0, err
        status, out, err = aim_fast("eval", tmp_path / file, *data[:4], "--views", "1x1", "--json", "-")
        assert status == 0, err
        assert json.loads(out)["top1"] == pytest.approx(top1)
    clip = next(data[3].rglob("*.webm"))
    status, out, err = aim_fast("predict", tmp_path / "one.pth", clip, "--json")
    assert status == 0, err
    assert len(json.loads(out)[0]["predictions"]) == 5


def test_what_convert_writes_is_the_librarys_own_and_starts_another_run(aim_fast, data, tmp_path):
    name = MODELS[0]
    options = (*data, "--model", name, "--batch-size", 8, "--total-batch-size", 8, "--epochs", 0, "--quiet")
    assert aim_fast("train", *options, "--weights", "random", "--output", tmp_path / "run")[0] == 0
    assert aim_fast("convert", tmp_path / "run", tmp_path / "one.pth")[0] == 0
    saved = torch.load(tmp_path / "one.pth", weights_only=True)["state_dict"]
    create_model(name, num_classes=8).network.load_state_dict(saved)
    torch.save(saved, tmp_path / "bare.pth")  # as torchvision has its files
    status, _, err = aim_fast("train", *options, "--weights", tmp_path / "bare.pth", "--output", tmp_path / "next")
    assert status == 0, err
    state = load_file(tmp_path / "next" / "checkpoints" / "last" / "adapters.safetensors")
    assert all(torch.equal(state[f"network.{key}"], tensor) for key, tensor in saved.items())
    score = ("--views", "1x1", "--json", "-")
    asked = aim_fast("eval", tmp_path / "bare.pth", *data[:4], "--model", name, *score)
    assert asked[0] == 0, asked[2]
    assert json.loads(asked[1])["top1"] == json.loads(aim_fast("eval", tmp_path / "run", *score)[1])["top1"]


@needs_transformers
def test_frozen_tokens_are_stored_and_trained_from(aim_fast, data, tmp_path):
    model = ("--model", MODELS[3], "--weights", "random")
    status, _, err = aim_fast("features", *data, *model, "--views", "1x1", "--output", tmp_path / "features")
    assert status == 0, err
    options = ("--features", tmp_path / "features", "--batch-size", 8, "--total-batch-size", 8, "--epochs", 1)
    status, out, err = aim_fast("train", *data, *model, *options, "--output", tmp_path / "run", "--quiet")
    assert status == 0, err
    assert "top-1" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "torchvision:mvit_v2_s"), "no weights given, and none are taken unasked"),
        (("--model", "torchvision:mvit_v2"), "did you mean 'torchvision:mvit_v2_s'"),
        (("--model", "torchvision:mvit_v2_s,deep=3"), "has no argument 'deep'"),
        (("--model", "torchvision:mvit_v2_s,frames=5", "--weights", "random"), "num_frames 5 is not a multiple of 2"),
        (("--model", "torchvision:mvit_v2_s,frames=4", "--frames", 8), "both say frames"),
        (("--model", "torchvision:mvit_v2_s,adapters=[spatial]"), "takes no --adapters"),
        (("--model", "torchvision:mvit_v2_s", "--method", "aim"), "of method full"),
        (("--model", "torchvision:mvit_v2_s", "--weights", "torchvision:MViT_V2_S_Weights.K"), "no weights"),
        (("--model", "torchvision:mvit_v2_s", "--weights", "transformers:a/b"), "the model is torchvision's"),
        (("--model", "aim_vit_demo,num_tadapter=3", "--weights", "random"), "num_tadapter"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(options, says, aim_fast, data, tmp_path):
    status, _, err = aim_fast("train", *data, *options, "--output", tmp_path / "run")
    assert (status, err.count("\n")) == (2, 1)
    assert says in err
    assert not (tmp_path / "run").exists()


def test_names_with_settings_are_taken_wherever_a_model_is_named(aim_fast, data, trunk, tmp_path):
    name = "aim_vit_demo,frames=4,adapters=[spatial],depth=4"
    options = ("--weights", trunk, "--batch-size", 8, "--epochs", 1, "--eval-every", 1, "--quiet")
    assert aim_fast("train", *data, "--model", name, *options, "--output", tmp_path / "a")[0] == 0
    said = ("--model", "aim_vit_demo", "--frames", 4, "--adapters", "spatial")
    assert aim_fast("train", *data, *said, *options, "--output", tmp_path / "b")[0] == 0
    ours, theirs = (load_file(tmp_path / run / "checkpoints" / "last" / "adapters.safetensors") for run in ("a", "b"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    status, out, err = aim_fast("models", "aim_vit_demo,frames=4,adapters=[spatial]", "--dataset", "ssv2", "--json")
    assert status == 0, err
    assert json.loads(out)[0]["frames"] == 4
    assert json.loads(out)[0]["overrides"]["adapters"] == ["spatial"]
