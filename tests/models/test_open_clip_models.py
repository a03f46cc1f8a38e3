"""Models by open_clip's names: the towers that open_clip builds, refused by structure where AIM is not built on one."""

import json
import re

import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models import loading as weights
from aim_fast.models.loading import load_weights, trunk_names
from aim_fast.models.registry import MODELS, create_model, find_entry
from aim_fast.models.weights import open_clip_tags
from tests.models.small_clips import SIZES, assert_same_features, make_clip

REGISTERED = {
    "aim_vit_b32_clip": "ViT-B-32-quickgelu",
    "aim_vit_b16_clip": "ViT-B-16-quickgelu",
    "aim_vit_l14_clip": "ViT-L-14-quickgelu",
    "aim_vit_l14_336_clip": "ViT-L-14-336-quickgelu",
    "aim_vit_h14_clip": "ViT-H-14",
    "aim_vit_g14_clip": "ViT-g-14",
    "aim_vit_bigg14_clip": "ViT-bigG-14",
}


def vision_config(name):
    return open_clip.get_model_config(name)["vision_cfg"]


def towers():
    """One of open_clip's names for each different image tower."""
    named = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        named.setdefault(json.dumps([config["vision_cfg"], config.get("quick_gelu")], sort_keys=True), name)
    return list(named.values())


OF_TIMM = ("MobileCLIP2-L-14", "vit_medium_patch16_gap_256")


def is_plain(vision):
    odd = {"timm_model_name", "attentional_pool", "ls_init_value"} & vision.keys()
    return not odd and isinstance(vision["layers"], int)


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("name", [name for name in towers() if is_plain(vision_config(name))])
def test_tensors_are_those_of_the_tower_that_open_clip_builds(name):
    config = open_clip.get_model_config(name)
    vision, quick_gelu = config["vision_cfg"], config.get("quick_gelu")
    assert find_entry(f"open_clip:{name}").arguments["depth"] == vision["layers"]
    with torch.device("meta"):  # two blocks tell of all: they are alike
        model = create_model(f"open_clip:{name}", depth=2)
        cut = CLIPVisionCfg(**{**vision, "layers": 2})
        tower = CLIP(config["embed_dim"], cut, CLIPTextCfg(layers=1), quick_gelu=quick_gelu).visual
    theirs = shapes(tower.state_dict())
    del theirs["proj"]
    assert {key: shape for key, shape in shapes(model.state_dict()).items() if key in trunk_names(model)} == theirs
    assert model.num_heads == tower.transformer.resblocks[0].attn.num_heads
    assert model.activation == ("quick_gelu" if config.get("quick_gelu") else "gelu")


@pytest.mark.parametrize("name", OF_TIMM)
def test_tensors_are_those_of_the_plain_vit_that_open_clip_takes_from_timm(name):
    vision = vision_config(name)
    with torch.device("meta"):
        model = create_model(f"open_clip:{name}")
        tower = timm.create_model(vision["timm_model_name"], num_classes=0, img_size=vision["image_size"])
    theirs = {re.sub(r"^(fc_)?norm\.", "ln_post.", key): shape for key, shape in shapes(tower.state_dict()).items()}
    assert {key: shape for key, shape in shapes(model.state_dict()).items() if key in trunk_names(model)} == theirs


def test_a_tower_of_timms_is_read_out_of_an_open_clip_file(tmp_path):
    """The features of each frame are those of timm's class token, and the text tower and projection are left out."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    tower = timm.create_model("vit_large_patch14_clip_224", num_classes=0, **sizes).eval()
    for parameter in tower.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    state = {f"visual.trunk.{key}": tensor for key, tensor in tower.state_dict().items()}
    state |= {"visual.head.proj.weight": torch.zeros(16, 32), "text.token_embedding.weight": torch.zeros(50, 32)}
    torch.save(state, tmp_path / "clip.pt")
    model = create_model("open_clip:MobileCLIP2-L-14", num_frames=4, num_classes=5, **sizes).eval()
    load_weights(model, tmp_path / "clip.pt")
    clips = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        theirs = tower.forward_features(clips.transpose(1, 2).flatten(0, 1))[:, 0].view(2, 4, -1)
        torch.testing.assert_close(model.forward_features(clips), theirs, rtol=1e-4, atol=1e-5)


def is_row_of_blocks(vision):
    """Whether a tower is a row of pre-norm blocks of timm's, whatever is in them."""
    name = vision.get("timm_model_name")
    return name and not re.search("convnext|fastvit|vitamin|swin|eva02_enormous", name)


@pytest.mark.parametrize(
    "name", [n for n in towers() if not is_plain(vision_config(n)) and not is_row_of_blocks(vision_config(n))]
)
def test_other_towers_are_refused_in_one_line(name):
    with pytest.raises(UsageError, match=r"its image tower has \w.*, on which no method is built") as caught:
        find_entry(f"open_clip:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("EVA02-E-14-plus", "norms after attention"),
        ("convnext_base", "ConvNeXt"),
        ("coca_ViT-L-14", "attention pooling"),
        ("RN50x4", "a ResNet"),
        ("ViT-S-16-alt", None),
        ("ViT-M-16-alt", "LayerScale"),
    ],
)
def test_the_structure_that_does_not_fit_is_named(name, structure):
    if structure is None:
        assert find_entry(f"open_clip:{name}").arguments["depth"] == 12
        return
    with pytest.raises(UsageError, match=structure):
        find_entry(f"open_clip:{name}")


@pytest.mark.parametrize(("ours", "theirs"), REGISTERED.items())
def test_registered_names_are_open_clips_architectures(ours, theirs):
    """A registered name is a shorthand: the same shapes, heads and activation."""
    with torch.device("meta"):
        model, named = create_model(ours, depth=1), create_model(f"open_clip:{theirs}", depth=1)
    assert model.config == named.config
    assert MODELS[ours].arguments["depth"] == vision_config(theirs)["layers"]
    assert shapes(model.state_dict()) == shapes(named.state_dict())


def test_every_registered_clip_is_compared():
    assert {name for name in MODELS if name.endswith("_clip") and name.startswith("aim_vit")} == set(REGISTERED)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-H-15", "did you mean 'ViT-H-1"),
        ("open_clip:ViT-H-14/laion2b_s32b_b79k", "is a tag of weights: give the model open_clip:ViT-H-14"),
    ],
)
def test_names_that_open_clip_does_not_have(name, message):
    with pytest.raises(UsageError, match=message):
        create_model(name)


CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
# Sizes of which open_clip has large ones: heads that are no power of two, an MLP ratio that is no whole number.
UNUSUAL = {"width": 40, "head_width": 20, "mlp_ratio": 4.9231}


@pytest.mark.parametrize(
    ("vision", "sizes", "name"),
    [
        (CLIPA, {}, "ViT-L-14-CLIPA"),
        (UNUSUAL, {"embed_dim": 40, "mlp_ratio": 4.9231}, "ViT-bigG-14"),
        (CLIPA | UNUSUAL, {"embed_dim": 40, "mlp_ratio": 4.9231}, "ViT-bigG-14-CLIPA"),
    ],
    ids=["clipa", "bigG", "bigG-clipa"],
)
@pytest.mark.parametrize("size", [32, 48])
def test_features_equal_the_tower_of_open_clip(vision, sizes, name, size, tmp_path):
    clip = make_clip(quick_gelu=False, image_size=32, **vision)
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    model = create_model(f"open_clip:{name}", **{**SIZES, "num_classes": 5, "img_size": size, **sizes}).eval()
    report = load_weights(model, tmp_path / "clip.pt")
    if size != 32:
        assert "interpolated from 4×4 patches (32 px) to 6×6 (48 px)" in report.lines[0]
        open_clip.model.resize_pos_embed(state := clip.state_dict(), make_clip(image_size=size, **vision))
        clip = make_clip(quick_gelu=False, image_size=size, **vision)
        clip.load_state_dict(state)
    assert_same_features(model, clip, size)
    assert create_model(f"open_clip:{name}", **model.config).state_dict().keys() == model.state_dict().keys()


def test_a_clipa_is_no_clip(tmp_path):
    for vision, name, message in (
        (CLIPA, "ViT-B-16", "is a CLIPA .no norm after the stem., the model a CLIP"),
        ({}, "ViT-L-14-CLIPA", "is a CLIP with a norm after the stem"),
        ({"ls_init_value": 0.1}, "ViT-B-16", "has LayerScale, which AIM on a CLIP ViT has not"),
        ({"attentional_pool": True}, "ViT-B-16", "has attention pooling"),
        ({"mlp_ratio": 2.0}, "ViT-B-16", "MLP of 64; the model is width 32"),
    ):
        torch.save(make_clip(**vision).state_dict(), tmp_path / "clip.pt")
        with pytest.raises(WeightsError, match=message):
            load_weights(create_model(f"open_clip:{name}", **SIZES), tmp_path / "clip.pt")


def test_normalisation_is_that_of_the_tag(tmp_path, monkeypatch):
    """CLIPA saw pixels normalised as ImageNet's; OpenAI's CLIP as the published recipes have it, which stay."""
    torch.save(make_clip(**CLIPA).state_dict(), tmp_path / "clip.pt")
    monkeypatch.setattr(weights, "fetch_tag", lambda tag, *_: (tmp_path / "clip.pt", "gelu"))
    model = create_model("open_clip:ViT-H-14-CLIPA", **SIZES)
    report = load_weights(model, "open_clip:ViT-H-14-CLIPA/datacomp1b")
    assert model.mean == pytest.approx((123.675, 116.28, 103.53))
    assert model.config["std"] == pytest.approx([58.395, 57.12, 57.375])
    assert any("normalised with mean [123.675, 116.28, 103.53]" in line for line in report.lines)
    mean, _ = open_clip_tags.tag_normalisation("open_clip:ViT-B-16/openai")
    assert mean == pytest.approx((122.771, 116.746, 104.094), abs=1e-3)
    torch.save(make_clip().state_dict(), tmp_path / "clip.pt")
    plain = create_model("open_clip:ViT-B-16", **SIZES)
    assert not any("normalised" in line for line in load_weights(plain, "open_clip:ViT-B-16/openai").lines)
    assert plain.mean == (122.769, 116.74, 104.04)
