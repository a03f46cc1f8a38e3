"""MTV: its costs, and the image ViT that one of its views starts from."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model


def test_the_view_of_its_width_starts_as_an_image_vit(tmp_path):
    model = create_model("mtv_demo", img_size=32).eval()
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    for width in (64, 48):
        vit = timm.create_model("vit_base_patch16_224", **sizes, embed_dim=width, num_classes=3)
        save_file(vit.state_dict(), tmp_path / f"{width}.safetensors")
    vit = timm.create_model("vit_base_patch16_224", **sizes, embed_dim=64, num_classes=0)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    report = load_weights(model, tmp_path / "vit.safetensors")
    assert report.lines[0].endswith("view 2 of 2 starts as it, all else anew")
    assert torch.equal(model.views[1][1].attn.qkv.weight, vit.blocks[1].attn.qkv.weight)
    assert torch.equal(model.embeddings[1].weight[:, :, 1], vit.patch_embed.proj.weight)
    assert not model.embeddings[1].weight[:, :, 0].any()
    assert torch.equal(model.pos_embeds[1], vit.pos_embed)
    with pytest.raises(WeightsError, match="an image ViT of width 48: take one of a view, 32 or 64"):
        load_weights(model, tmp_path / "48.safetensors")


def test_has_the_parameters_and_products_that_are_counted_for_the_published_one():
    found, trained, products = count_costs("mtv_l", {"num_frames": 32})
    assert found == trained
    assert found / 1e6 == pytest.approx(875.909, rel=0.0005)
    assert 12 * products / 1e9 == pytest.approx(17025, rel=0.0005)


def test_views_take_nothing_of_each_other_before_they_are_trained():
    model = create_model("mtv_demo").eval()
    crossing = model.cross_views["1"]
    views = [torch.randn(2, 2, 5, 32), torch.randn(2, 2, 9, 64)]
    assert all(torch.equal(after, before) for after, before in zip(crossing(views), views))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"depths": (2,)}, "take one number a view"),
        ({"tubelets": (4, 3)}, "multiple of the one after it"),
        ({"num_frames": 6}, "no multiple of the 4 frames"),
        ({"crossings": (2,)}, "crossings name block 2"),
        ({"global_heads": 5}, "do not divide the width 96"),
    ],
)
def test_what_cannot_be_is_said(wrong, said):
    with pytest.raises(UsageError, match=said):
        create_model("mtv_demo", **wrong)


def test_other_pictures_interpolate_positions_and_other_frames_are_refused(tmp_path):
    trained = create_model("mtv_demo")
    torch.save(trained.state_dict(), tmp_path / "mtv.pth")
    larger = create_model("mtv_demo", img_size=64)
    assert load_weights(larger, tmp_path / "mtv.pth").lines == [
        f"pos_embeds.{view} interpolated from 36 to 64 positions" for view in range(2)
    ]
    assert torch.equal(larger.pos_embeds[1][:, 0], trained.pos_embeds[1][:, 0])
    with pytest.raises(WeightsError, match="is of another model than this MTV: cls_tokens.0"):
        load_weights(create_model("mtv_demo", num_frames=16), tmp_path / "mtv.pth")
