"""``load_weights``: every source it takes, equal features with open_clip's towers, and every bad file in one line."""

import copy

import numpy as np
import open_clip
import pytest
import torch

from aim_fast.errors import WeightsError
from aim_fast.models.loading import load_weights, save_trunk, trunk_names, trunk_sha256
from aim_fast.models.registry import create_model
from aim_fast.models.weights.architecture import infer_architecture
from tests.models.small_clips import assert_same_features, make_clip, small, write


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.mark.parametrize(
    "kind",
    ["scripted", "traced", "state_dict", "training_checkpoint", "legacy_pickle", "bare_tower", "safetensors"],
)
def test_features_equal_the_visual_tower_of_open_clip(kind, clip, tmp_path):
    model = small()
    report = load_weights(model, write(kind, clip, tmp_path))
    assert report.kind == "clip"
    assert report.sha256 == trunk_sha256(model)
    assert_same_features(model, clip)
    says_activation = any("does not say its activation" in line for line in report.lines)
    assert says_activation is (kind not in ("scripted", "traced"))


def test_half_precision_files_are_taken_in_full_precision_models(clip, tmp_path):
    model = small()
    load_weights(model, write("half_state_dict", clip, tmp_path))
    assert model.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(model.conv1.weight, clip.visual.conv1.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_activation_is_read_from_a_torchscript_archive(kind, quick_gelu, tmp_path):
    clip = make_clip(quick_gelu=quick_gelu)
    model = small(activation="gelu" if quick_gelu else "quick_gelu")
    report = load_weights(model, write(kind, clip, tmp_path))
    assert model.activation == ("quick_gelu" if quick_gelu else "gelu")
    assert any(f"activation set to {model.activation}" in line for line in report.lines)
    assert_same_features(model, clip)


def test_gelu_towers_need_the_models_gelu(tmp_path):
    clip, model = make_clip(quick_gelu=False), small(activation="gelu")
    load_weights(model, write("state_dict", clip, tmp_path))
    assert_same_features(model, clip)


def test_adapters_and_head_keep_their_initialisation(clip, tmp_path):
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_weights(model, write("state_dict", clip, tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) is (name not in trunk_names(model)), name


@pytest.mark.parametrize("size", [48, 24])
def test_positional_embedding_is_interpolated_and_said_so(size, clip, tmp_path):
    model = small(img_size=size)
    report = load_weights(model, write("state_dict", clip, tmp_path))
    grid = size // 8
    expected = f"interpolated from 4×4 patches (32 px) to {grid}×{grid} ({size} px)"
    assert any(expected in line for line in report.lines)
    state = clip.state_dict()
    twin = make_clip(image_size=size)
    open_clip.model.resize_pos_embed(state, twin)  # open_clip's own interpolation
    twin.load_state_dict(state)
    assert_same_features(model, twin, size)


def test_positional_embedding_of_the_same_size_is_untouched(clip, tmp_path):
    model = small()
    report = load_weights(model, write("state_dict", clip, tmp_path))
    assert torch.equal(model.positional_embedding, clip.visual.positional_embedding)
    assert not any("interpolated" in line for line in report.lines)


def published_checkpoint(path, prefix=True, **overrides):
    """A published AIM checkpoint with meta, optimizer and NumPy scores beside its tensors; returns its model."""
    torch.manual_seed(3)
    model = small(num_tadapter=2, **overrides)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    names = {n: f"cls_head.{n}" if n.startswith("fc_cls") else f"backbone.{n}" for n in model.state_dict()}
    state = {names[n] if prefix else n: t for n, t in model.state_dict().items()}
    meta = {"epoch": 50, "hook_msgs": {"best_score": np.float64(0.664), "ranks": np.int64(3)}, "mmcv_version": "1.4.0"}
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {0: {"step": 1}}}, "amp": {}}, path)
    return model


@pytest.mark.parametrize("prefix", [True, False])
def test_published_aim_checkpoint_is_taken_whole(prefix, tmp_path):
    theirs = published_checkpoint(tmp_path / "aim.pth", prefix)
    model = small(num_tadapter=2, activation="gelu")
    report = load_weights(model, tmp_path / "aim.pth")
    assert report.kind == "aim"
    assert model.activation == "quick_gelu"
    x = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(model(x), theirs(x))


def test_aim_head_of_another_class_count_stays_at_its_initialisation(tmp_path):
    theirs = published_checkpoint(tmp_path / "aim.pth")
    model = small(num_tadapter=2, num_classes=7)
    head = model.fc_cls.weight.clone()
    report = load_weights(model, tmp_path / "aim.pth")
    assert any("a head of 5 classes, the model of 7" in line for line in report.lines)
    assert torch.equal(model.fc_cls.weight, head)
    adapter = "transformer.resblocks.1.T_Adapter_in.D_fc2.weight"
    assert torch.equal(model.get_parameter(adapter), theirs.get_parameter(adapter))


def test_temporal_embedding_of_another_length_is_interpolated(tmp_path):
    theirs = published_checkpoint(tmp_path / "aim.pth")
    ramp = torch.arange(4.0)[:, None].expand(4, 32)
    checkpoint = torch.load(tmp_path / "aim.pth", weights_only=False)
    checkpoint["state_dict"]["backbone.temporal_embedding"] = ramp[None]
    torch.save(checkpoint, tmp_path / "aim.pth")
    model = small(num_tadapter=2, num_frames=8)
    report = load_weights(model, tmp_path / "aim.pth")
    assert any("temporal embedding interpolated from 4 to 8 frames" in line for line in report.lines)
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])  # middles of equal parts, clamped
    torch.testing.assert_close(model.temporal_embedding[0, :, 0], expected)
    assert theirs.num_frames == 4


def test_missing_second_adapter_is_an_identity_and_said_so(tmp_path):
    theirs = published_checkpoint(tmp_path / "aim.pth")
    state = {n: t for n, t in theirs.state_dict().items() if "T_Adapter_in" not in n}
    torch.save(state, tmp_path / "one.pth")
    model, plain = small(num_tadapter=2), small(num_tadapter=1)
    report = load_weights(model, tmp_path / "one.pth")
    load_weights(plain, tmp_path / "one.pth")
    assert any("no T_Adapter_in: it is left at its initialisation" in line for line in report.lines)
    x = torch.randn(1, 3, 4, 32, 32)
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_tadapter": 1}, "num_tadapter=2"),
        ({"num_tadapter": 2, "adapters": ("temporal",)}, r"adapters=\['spatial', 'temporal', 'joint'\]"),
        ({"num_tadapter": 2, "adapter_ratio": 0.5}, "adapter_ratio=0.25"),
    ],
)
def test_aim_checkpoints_whose_adapters_have_no_place_are_refused(overrides, message, tmp_path):
    published_checkpoint(tmp_path / "aim.pth")
    with pytest.raises(WeightsError, match=message):
        load_weights(small(**overrides), tmp_path / "aim.pth")


def test_saved_trunk_carries_its_activation_and_nothing_of_the_adaptation(tmp_path):
    trained = small(adapters=(), activation="gelu", num_classes=9)
    trained.requires_grad_(True)
    save_trunk(trained, tmp_path / "trunk.safetensors")
    model = small()
    report = load_weights(model, tmp_path / "trunk.safetensors")
    assert report.kind == "clip"
    assert report.lines == [f"activation set to gelu, with which {tmp_path / 'trunk.safetensors'} was trained"]
    x = torch.randn(1, 3, 4, 32, 32)
    torch.testing.assert_close(model.forward_features(x), trained.forward_features(x))


def test_frame_classifier_files_give_their_trunk_only(tmp_path):
    torch.save(small(adapters=()).state_dict(), tmp_path / "stills.pt")
    model = small()
    head = model.fc_cls.weight.clone()
    report = load_weights(model, tmp_path / "stills.pt")
    assert any("fc_cls.bias, fc_cls.weight, temporal_embedding" in line for line in report.lines)
    assert torch.equal(model.fc_cls.weight, head)


def test_random_depends_on_the_seed_alone():
    torch.manual_seed(5)
    one, two, three = small(), small(), small()
    state = torch.get_rng_state()
    reports = [load_weights(model, "random", seed=seed) for model, seed in ((one, 1), (two, 1), (three, 2))]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert reports[0].sha256 == reports[1].sha256 != reports[2].sha256
    assert reports[0].kind == "random"
    assert "RANDOM" in reports[0].lines[0]


def test_trunk_hash_covers_every_frozen_tensor_and_no_trained_one():
    model = small()
    original, whole = trunk_sha256(model), copy.deepcopy(model.state_dict())
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.neg_().sub_(1)
            changed = trunk_sha256(model) != original
            parameter.copy_(whole[name])
        assert changed is not parameter.requires_grad, name


def test_architecture_is_inferred_from_whole_and_bare_state_dicts(clip, tmp_path):
    sizes = {"embed_dim": 32, "depth": 2, "patch_size": 8, "img_size": 32}
    assert infer_architecture(clip.state_dict()) == sizes
    assert infer_architecture(clip.visual.state_dict()) == sizes
    aim = published_checkpoint(tmp_path / "aim.pth")
    adaptation = {"num_frames": 4, "num_tadapter": 2, "adapter_ratio": 0.25, "adapters": list(aim.adapters)}
    adaptation["adapter_layers"] = list(aim.adapter_layers)
    state = aim.state_dict()
    assert infer_architecture(state) == sizes | adaptation | {"num_classes": 5}
    headless = {f"module.backbone.{name}": t for name, t in state.items() if not name.startswith("fc_cls")}
    assert infer_architecture(headless) == sizes | adaptation
    create_model("aim_vit_demo", num_heads=2, **infer_architecture(state)).load_state_dict(state)
