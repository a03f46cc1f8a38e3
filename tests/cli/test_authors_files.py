"""`eval`, `predict` and `convert` of files as methods' authors write them, on the demo's clips."""

import json

import pytest
import torch

from aim_fast.models.registry import create_model
from tests.models.golden_cases import peer_case

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def action_clip(clip_file, tmp_path_factory):
    """An ActionCLIP's two state dicts: open_clip's CLIP, and for frames six blocks of a text tower of open_clip's."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(1)
    vision = CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=8, image_size=48)
    blocks = CLIP(64, vision, CLIPTextCfg(vocab_size=9, width=64, heads=1, layers=6)).state_dict()
    fusion = {name: tensor for name, tensor in blocks.items() if name.startswith("transformer.resblocks.")}
    fusion["frame_position_embeddings.weight"] = torch.randn(77, 64)
    towers = torch.load(clip_file, weights_only=True)
    states = [{f"module.{name}": tensor for name, tensor in state.items()} for state in (towers, fusion)]
    path = tmp_path_factory.mktemp("action_clip") / "model_best.pt"
    torch.save({"epoch": 49, "model_state_dict": states[0], "fusion_model_state_dict": states[1]}, path)
    return path


@pytest.fixture(scope="module")
def evl(tmp_path_factory):
    """What EVL's authors write: the decoder and the classifier, under the names of their golden case."""
    torch.manual_seed(0)
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
    model = create_model("vit_b16_clip", method="evl", **sizes, decoder_layers=2, num_frames=4, num_classes=8)
    state = {model.published_name(name): tensor for name, tensor in model.state_dict().items()}
    theirs = {name for name in peer_case("evl").state if name.startswith(("decoder.", "proj."))}
    assert theirs == {name for name in state if not name.startswith("visual.")}
    path = tmp_path_factory.mktemp("evl") / "checkpoint-50000.pth"
    torch.save({"model": {name: state[name] for name in theirs}, "next_step": 50_000}, path)
    return path


def test_an_action_clip_is_scored_predicted_with_and_converted(aim_fast, action_clip, motion_set, tmp_path):
    data = ("--dataset", "ssv2", "--data-root", motion_set)
    status, out, err = aim_fast("eval", action_clip, *data, "--frames", 4, "--json", "-")
    assert status == 0, err
    scores = json.loads(out)
    (tmp_path / "names.txt").write_text("walking\nbrushing hair\n")
    video = next(motion_set.rglob("*.webm"))
    names = ("--class-names", tmp_path / "names.txt")
    status, out, err = aim_fast("predict", action_clip, video, "--json")
    assert status == 2
    assert "give --class-names FILE" in err
    status, _, err = aim_fast("convert", action_clip, tmp_path / "one.safetensors")
    assert status == 0, err
    status, out, err = aim_fast("predict", tmp_path / "one.safetensors", video, "--json", *names)
    assert status == 0, err
    assert {row["label"] for row in json.loads(out)[0]["predictions"]} == {"walking", "brushing hair"}
    status, out, err = aim_fast("eval", tmp_path / "one.safetensors", *data, "--frames", 4, "--json", "-")
    assert status == 0, err
    assert json.loads(out)["loss"] == scores["loss"]


def test_evls_decoder_is_joined_with_the_trunk_that_weights_names(aim_fast, evl, clip_file, motion_set, tmp_path):
    data = ("--dataset", "ssv2", "--data-root", motion_set)
    for command in (("eval", evl, *data), ("convert", evl, tmp_path / "run"), ("predict", evl, "clip.mp4")):
        status, _, err = aim_fast(*command)
        assert status == 2
        assert "holds the network of method evl alone, without its trunk of width 64: give that too" in err
        assert err.count("\n") == 1
    status, out, err = aim_fast("eval", evl, *data, "--weights", clip_file, "--json", "-")
    assert status == 0, err
    (tmp_path / "names.txt").write_text("\n".join(row["class"] for row in json.loads(out)["classes"]))
    named = ("--classes", tmp_path / "names.txt")
    status, _, err = aim_fast("convert", evl, tmp_path / "run", "--weights", clip_file, *named)
    assert status == 0, err
    status, again, err = aim_fast("eval", tmp_path / "run", *data, "--json", "-")
    assert status == 0, err
    assert json.loads(again)["loss"] == json.loads(out)["loss"]
    options = ("--model", "vit_demo", "--method", "evl", *data, "--weights", evl, "--output", tmp_path / "mine")
    status, _, err = aim_fast("train", *options, "--epochs", 1)
    assert status == 2
    assert "holds the network of method evl alone" in err
