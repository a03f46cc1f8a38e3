"""ViViT's factorised encoder: its costs, sizes of other clips, and the image ViT that it starts from."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from tests.models.golden_cases import assert_relative, flax_case

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_frames": 4}


@pytest.fixture(scope="module")
def golden():
    case = flax_case("vivit_fe")
    names = {"hidden_size": "embed_dim", "num_layers": "depth"}
    case.config = {names.get(name, name): value for name, value in case.config.items()}
    case.config["patch_size"], _, case.config["tubelet"] = case.config.pop("patch")
    return case


def test_other_frames_and_pictures_are_interpolated_and_other_classes_start_anew(golden, tmp_path):
    save_file(golden.published, tmp_path / "published.safetensors")
    sizes = {"num_frames": 4, "img_size": 48, "num_classes": 7}
    model = create_model("vivit_fe_b16x2", **golden.config | sizes)
    lines = load_weights(model, tmp_path / "published.safetensors").lines
    assert lines == [
        "spatial.pos_embed interpolated from 16 to 36 positions",
        "temporal.pos_embed interpolated from 4 to 2 positions",
        f"{tmp_path / 'published.safetensors'} has another classifier: that of the model's 7 classes starts anew",
    ]
    assert torch.equal(model.temporal.pos_embed[:, :1], golden.state["temporal.pos_embed"][:, :1])
    assert torch.equal(model.spatial.blocks[1].attn.qkv.weight, golden.state["spatial.blocks.1.attn.qkv.weight"])


def test_from_an_image_vit_its_spatial_encoder_is_that_vit_on_the_central_frames(tmp_path):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    vit = timm.create_model("vit_base_patch16_224", **sizes, act_layer="gelu_tanh", num_classes=3).double().eval()
    torch.nn.init.normal_(vit.norm.weight)
    save_file(vit.state_dict(), tmp_path / "timm.safetensors")
    model = create_model("vivit_fe_b16x2", **SMALL, num_classes=5).double().eval()
    report = load_weights(model, tmp_path / "timm.safetensors")
    assert report.kind == "timm"
    assert "class tokens, temporal blocks and classifier start anew" in report.lines[0]
    torch.nn.init.zeros_(vit.cls_token)  # which is not taken
    clip = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    seen = []
    model.temporal.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert not model(clip).any()  # a classifier of zeros
    for step, frame in enumerate((1, 3)):
        assert_relative(seen[0][:, 0, step], vit.forward_features(clip[:, :, frame])[:, 0])


@pytest.mark.parametrize(
    ("model", "frames", "overrides", "params", "gflops"),
    [
        ("vivit_fe_b16x2", 32, {}, 115.063, 283.3),
        ("vivit_fe_l16x2", 128, {}, 606.83, 3969.1),
    ],
)
def test_has_the_published_parameters_and_products(model, frames, overrides, params, gflops):
    found, trained, products = count_costs(model, {"num_frames": frames, **overrides})
    assert found == trained
    assert found / 1e6 == pytest.approx(params, rel=0.005)
    assert products / 1e9 == pytest.approx(gflops, rel=0.005)


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_droppath_is_drawn_once_for_forward_and_backward(memory):
    """A block that runs twice for its memory drops the same, so that a gradient is the difference of its loss."""
    model = create_model("vivit_fe_demo", **SMALL, drop_path=0.5, memory=memory).double().train()
    torch.nn.init.normal_(model.fc_cls.weight)
    clip = torch.randn(4, 3, 4, 32, 32, dtype=torch.float64)
    weight = model.spatial.blocks[1].mlp.fc1.weight

    def loss():
        torch.manual_seed(5)
        return model(clip).square().sum()

    (slope,) = torch.autograd.grad(loss(), weight)
    step = torch.randn_like(weight) * 1e-6
    with torch.no_grad():
        weight += step
        after = loss()
        weight -= 2 * step
        slopes = after - loss()
    assert slopes.item() == pytest.approx(2 * (slope * step).sum().item(), rel=1e-4)


def test_what_cannot_be_is_said(tmp_path):
    wrongs = (({"num_frames": 5}, "no multiple of the 2 frames of a tubelet"), ({"img_size": 30}, "patch_size"))
    for wrong, said in wrongs:
        with pytest.raises(UsageError, match=said):
            create_model("vivit_fe_demo", **wrong)
    torch.save(create_model("uniformer_demo").state_dict(), tmp_path / "uniformer.pth")
    with pytest.raises(WeightsError, match="is of another model than this ViViT"):
        load_weights(create_model("vivit_fe_demo"), tmp_path / "uniformer.pth")
