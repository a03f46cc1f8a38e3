"""TimeSformer on CLIP: the published numbers, and how it starts from an image model."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from aim_fast.errors import WeightsError
from aim_fast.models.loading import load_weights, save_trunk
from aim_fast.models.registry import create_model

GOLDEN = Path(__file__).parents[1] / "golden" / "timesformer_clip.safetensors"
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_frames": 4, "num_classes": 5}


def published_name(name):
    return f"cls_head.{name}" if name.startswith("fc_cls") else f"backbone.{name}"


def assert_relative(got, truth, tolerance=1e-8):
    assert got.shape == truth.shape
    assert (got - truth).norm() <= tolerance * truth.norm()


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    model = create_model("timesformer_b16_clip", **json.loads(metadata["config"])).double().eval()
    state = {name.removeprefix("state/"): t for name, t in tensors.items() if name.startswith("state/")}
    assert state.keys() == {published_name(name) for name in model.state_dict()}
    model.load_state_dict({name: state[published_name(name)] for name in model.state_dict()})
    return model, tensors, set(json.loads(metadata["trainable"]))


@pytest.mark.parametrize(
    ("backend", "memory"), [("fused", "fast"), ("fused", "balanced"), ("fused", "lean"), ("reference", "fast")]
)
def test_golden_outputs_and_every_gradient(golden, backend, memory):
    model, truth, _ = golden
    model = copy.deepcopy(model)
    for block in model.transformer.resblocks:
        block.backend, block.memory = backend, memory
    x = truth["input"].double().requires_grad_(True)
    features = model.forward_features(x)
    logits = model.forward_head(features)
    loss = F.cross_entropy(logits, truth["label"])
    loss.backward()
    assert_relative(features.transpose(1, 2)[..., None, None], truth["features"])
    assert_relative(logits, truth["logits"])
    assert_relative(loss.reshape(1), truth["loss"].reshape(1))
    assert_relative(x.grad, truth["grad_input"])
    for name, parameter in model.named_parameters():
        assert_relative(parameter.grad, truth[f"grad/{published_name(name)}"])


def test_trains_everything_or_what_the_published_code_leaves_trainable(golden):
    model, _, trainable = golden
    assert all(parameter.requires_grad for parameter in model.parameters())
    frozen = create_model("timesformer_demo", **TINY, tune="adapters")
    assert {published_name(name) for name, _ in frozen.trainable_parameters()} == trainable


def test_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = create_model("timesformer_b16_clip", num_classes=174)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(121e6, rel=0.01)


@pytest.fixture
def clip_file(tmp_path):
    """A trunk in CLIP's names, and the frozen space-only model with its weights."""
    torch.manual_seed(1)
    frames = create_model("aim_vit_demo", **TINY, adapters=())
    for name, parameter in frames.named_parameters():
        if "ln_1" in name or "in_proj_bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_trunk(frames, tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors", frames


def test_starts_from_clip_weights_as_clip_frame_by_frame_with_copied_attention(clip_file):
    path, frames = clip_file
    model = create_model("timesformer_demo", **TINY)
    report = load_weights(model, path)
    assert report.kind == "clip"
    model.eval(), frames.eval()
    state = model.state_dict()
    for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
        own, source = (state[f"transformer.resblocks.1.{kind}.{name}"] for kind in ("t_attn", "attn"))
        assert torch.equal(own, source)
    assert torch.equal(state["transformer.resblocks.0.t_norm.weight"], state["transformer.resblocks.0.ln_1.weight"])
    assert state["transformer.resblocks.0.t_norm.weight"].std() > 0.1
    x = torch.randn(2, 3, 4, 32, 32)
    torch.testing.assert_close(model.forward_features(x), frames.forward_features(x))


def test_a_whole_timesformer_is_read_back_and_its_frames_interpolated(tmp_path):
    torch.manual_seed(0)
    model = create_model("timesformer_demo", **TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save({"state_dict": {published_name(k): v for k, v in model.state_dict().items()}}, tmp_path / "t.pth")
    again = create_model("timesformer_demo", **TINY)
    assert load_weights(again, tmp_path / "t.pth").kind == "aim"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    longer = create_model("timesformer_demo", **{**TINY, "num_frames": 8, "num_classes": 7})
    lines = load_weights(longer, tmp_path / "t.pth").lines
    assert any("interpolated from 4 to 8 frames" in line for line in lines)
    assert any("head of 5 classes, the model of 7" in line for line in lines)


def test_checkpoints_of_the_other_method_are_named(tmp_path):
    aim, timesformer = create_model("aim_vit_demo", **TINY), create_model("timesformer_demo", **TINY)
    torch.save(aim.state_dict(), tmp_path / "aim.pth")
    torch.save(timesformer.state_dict(), tmp_path / "timesformer.pth")
    with pytest.raises(WeightsError, match=r"aim\.pth is an AIM checkpoint"):
        load_weights(timesformer, tmp_path / "aim.pth")
    with pytest.raises(WeightsError, match=r"timesformer\.pth is a TimeSformer"):
        load_weights(aim, tmp_path / "timesformer.pth")


def test_droppath_falls_on_all_three_branches():
    torch.manual_seed(0)
    block = create_model("timesformer_demo", **TINY, drop_path=0.9).transformer.resblocks[1]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, 4, 400, 32)
    out = block.train()(x)
    bias = block.T_Adapter.bias
    kept = (out - x - bias).abs().amax(-1) < 1e-5  # tokens of which all three branches are dropped: 0.9³ of them
    assert kept.float().mean().item() == pytest.approx(0.729, abs=0.08)
