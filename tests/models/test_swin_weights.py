"""Image weights into AIM on Swin: timm's and Microsoft's names, other sizes, AIM checkpoints, and what is refused."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from aim_fast.errors import WeightsError
from aim_fast.models.loading import load_weights, save_trunk, trunk_sha256
from aim_fast.models.registry import create_model
from aim_fast.models.weights.interpolation import interpolate_bias_table, interpolate_offsets
from aim_fast.models.weights.state_dict import load_checkpoint

SIZES = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 1, 1), "num_heads": (1, 2, 4)}


def ours(**overrides):
    return create_model("aim_swin_demo", **{**SIZES, "num_frames": 4, **overrides})


@pytest.fixture(scope="module")
def image_model():
    """timm's own Swin with shifted windows in its first stage, every parameter random."""
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer(**SIZES, num_classes=7).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def microsoft(state):
    """timm's tensors in the names of Microsoft's checkpoints, with the tensors that those compute and keep."""
    names = {}
    for name, tensor in state.items():
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        names[name.replace("head.fc.", "head.")] = tensor
    names["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    names["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    return names


def write(path, state):
    if path.suffix == ".pth":
        torch.save({"model": state}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize(("names", "file"), [(dict, "timm.safetensors"), (microsoft, "microsoft.pth")])
def test_a_still_clip_gives_timms_features(names, file, image_model, tmp_path):
    model = ours()
    report = load_weights(model, write(tmp_path / file, names(image_model.state_dict())))
    assert report.kind == "timm"
    assert report.lines == ["patch embedding inflated from images to 2 frames a patch"]
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    features = model.double().eval().forward_features(image[:, :, None].expand(-1, -1, 4, -1, -1))
    truth = copy.deepcopy(image_model).double().forward_features(image).flatten(1, 2)  # [B, N, D]
    for step in features.unbind(1):
        torch.testing.assert_close(step, truth, rtol=1e-10, atol=1e-10)


def test_every_tensor_of_the_trunk_is_taken(image_model, tmp_path):
    model = ours()
    load_weights(model, write(tmp_path / "timm.safetensors", image_model.state_dict()))
    state = image_model.state_dict()
    torch.testing.assert_close(
        model.layers[0].downsample.reduction.weight, state["layers.1.downsample.reduction.weight"]
    )
    torch.testing.assert_close(model.patch_embed.proj.weight.sum(2), state["patch_embed.proj.weight"])


def test_other_windows_are_interpolated_and_said(image_model, tmp_path):
    model = ours(img_size=64, window_size=8)
    report = load_weights(model, write(tmp_path / "timm.safetensors", image_model.state_dict()))
    assert "position biases interpolated from windows of 4 × 4 to 8 × 8" in report.lines
    table = model.layers[0].blocks[0].attn.relative_position_bias_table
    theirs = image_model.state_dict()["layers.0.blocks.0.attn.relative_position_bias_table"]
    torch.testing.assert_close(table.view(15, 15)[7, 7], theirs.view(7, 7)[3, 3])  # a token and itself


def test_interpolation_keeps_directions_and_the_middle():
    offsets = torch.linspace(-1, 1, 7)
    torch.testing.assert_close(interpolate_offsets(offsets[:, None], 15)[:, 0], torch.linspace(-1, 1, 15))
    by_row = offsets[:, None].expand(7, 7).reshape(49, 1)
    grown = interpolate_bias_table(by_row, 7).view(13, 13)
    torch.testing.assert_close(grown, grown[:, :1].expand(13, 13))
    torch.testing.assert_close(grown, -grown.flip(0))
    assert (grown.diff(dim=0) > 0).all()
    assert torch.equal(interpolate_bias_table(by_row, 4), by_row)


def test_trunk_and_whole_checkpoint_round_trips(tmp_path):
    torch.manual_seed(0)
    model = ours(num_frames=8).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_trunk(model, tmp_path / "trunk.safetensors")
    again = ours(num_frames=8)
    assert load_weights(again, tmp_path / "trunk.safetensors").sha256 == trunk_sha256(model)
    published = {
        f"cls_head.{n}" if n.startswith("fc_cls") else f"backbone.{n}": t for n, t in model.state_dict().items()
    }
    torch.save({"state_dict": published}, tmp_path / "aim.pth")
    x = torch.randn(1, 3, 8, 32, 32)
    for load in (load_checkpoint, load_weights):
        twin = ours(num_frames=8).eval()
        load(twin, tmp_path / "aim.pth")
        assert torch.equal(twin(x), model(x))
    longer = ours(num_frames=16)
    report = load_weights(longer, tmp_path / "aim.pth")
    assert (report.kind, report.lines) == ("aim", ["temporal position biases interpolated from 8 to 16 frames"])
    tables = [m.layers[0].blocks[0].attn.temporal_position_bias_table for m in (model, longer)]
    torch.testing.assert_close(tables[1][[0, 7, 14]], tables[0][[0, 3, 6]])


def test_published_freeze_is_a_function_of_the_seed():
    found = []
    for seed in (3, 3, 4):
        model = ours(published_freeze=True)
        load_weights(model, "random", seed=seed)
        found.append(model.layers[0].blocks[0].attn.temporal_position_bias_table)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"embed_dim": 32},
            "another architecture: it looks like width 16, depths 2-1-1, heads 1-2-4, window 4; the model",
        ),
        ({"depths": (2, 2, 1)}, "depths 2-1-1.*the model is.*2-2-1"),
        ({"num_heads": (2, 2, 4)}, "heads 1-2-4"),
    ],
)
def test_another_architecture_is_named(overrides, message, image_model, tmp_path):
    model = ours(**overrides)
    before = model.patch_embed.proj.weight.clone()
    with pytest.raises(WeightsError, match=message):
        load_weights(model, write(tmp_path / "timm.safetensors", image_model.state_dict()))
    assert torch.equal(model.patch_embed.proj.weight, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {n: t for n, t in s.items() if "norm2" not in n}, "missing layers.0.blocks.0.norm2.bias"),
        (lambda s: {"features.0.0.weight": torch.zeros(1)}, "names are those of torchvision"),
        (lambda s: {"transformer.resblocks.0.ln_1.weight": torch.zeros(1)}, "those of a CLIP ViT"),
        (lambda s: s | {"layers.0.blocks.0.attn.logit_scale": torch.zeros(1)}, "is a Swin V2"),
        (lambda s: s | {"layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(48, 1)}, "square windows"),
        (lambda s: s | {"absolute_pos_embed": torch.zeros(1)}, "unexpected absolute_pos_embed"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message, image_model, tmp_path):
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(ours(), write(tmp_path / "x.safetensors", change(dict(image_model.state_dict()))))
    assert "\n" not in str(caught.value)


def test_a_timm_tag_is_taken_from_the_hubs_cache(image_model, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tag = "timm:swin_tiny_patch4_window7_224.ms_in22k"
    with pytest.raises(WeightsError, match="not in the cache and cannot be fetched.*of timm/swin_tiny") as caught:
        load_weights(ours(), tag)
    assert "\n" not in str(caught.value)
    folder = tmp_path / "models--timm--swin_tiny_patch4_window7_224.ms_in22k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    write(folder / "snapshots" / ("0" * 40) / "model.safetensors", image_model.state_dict())
    assert load_weights(ours(), tag).kind == "timm"
    with pytest.raises(WeightsError, match="did you mean 'swin_tiny_patch4_window7_224"):
        load_weights(ours(), "timm:swin_tiny_patch4_window7_242")


def test_adapters_that_the_model_lacks_are_refused(tmp_path):
    torch.save(ours().state_dict(), tmp_path / "aim.pth")
    for overrides, message in (
        ({"adapters": ("joint",)}, "make the model with adapters="),
        ({"adapter_ratio": 0.5}, "0.25"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_weights(ours(**overrides), tmp_path / "aim.pth")
