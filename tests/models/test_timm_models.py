"""AIM on timm's ViTs: timm's own features at the adapters' start, weights in and out, and refusals by name."""

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.loading import load_weights, save_trunk
from aim_fast.models.registry import create_model
from aim_fast.models.trunks.timm_models import vit_arguments

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}
TRUNKS = {
    "plain": ("vit_base_patch16_224", {}),
    "LayerScale and registers (DINOv2)": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.3}),
    "registers with positions": ("vit_base_patch16_224", {"reg_tokens": 2, "init_values": 0.3}),
    "average pooling without class token": ("vit_base_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "average pooling after the norm": ("vit_base_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    "qk-norm": ("vit_base_patch16_224", {"qk_norm": True}),
    "norm after the stem, QuickGELU (CLIP)": ("vit_base_patch16_clip_quickgelu_224", {}),
    "average pooling, GELU by tanh (SigLIP)": ("vit_base_patch32_siglip_gap_256", {}),
    "no biases": ("vit_base_patch16_224", {"qkv_bias": False, "proj_bias": False}),
}


def timm_model(name, seed=0, **overrides):
    """A tiny timm model whose every tensor is drawn at random."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **{**SIZES, **overrides}).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def adapted(theirs, file, **overrides):
    model = create_model(
        "aim_vit_b16_in21k", **{**vit_arguments(theirs), "num_frames": 3, "num_classes": 5, **overrides}
    )
    save_file(theirs.state_dict(), file)
    report = load_weights(model.double().eval(), file)
    assert report.kind == "timm"
    return model, report


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_frame_features_are_timms_while_the_adapters_are_new(trunk, backend, tmp_path):
    name, overrides = TRUNKS[trunk]
    theirs = timm_model(name, **overrides)
    model, _ = adapted(theirs, tmp_path / "vit.safetensors", backend=backend, num_tadapter=2)
    clips = torch.randn(2, 3, 3, 32, 32, dtype=torch.float64)
    frames = clips.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        truth = theirs.forward_head(theirs.forward_features(frames), pre_logits=True).view(2, 3, -1)
        got = model.forward_features(clips)
    assert (got - truth).norm() <= 1e-9 * truth.norm()
    assert truth.std() > 0.01


def test_a_published_average_pooled_trunk_trains_every_adapter(tmp_path):
    model, _ = adapted(timm_model(*_split("average pooling without class token")), tmp_path / "vit.safetensors")
    for name, parameter in model.named_parameters():
        if "D_fc2" in name:
            nn.init.normal_(parameter, std=0.05)
    model(torch.randn(2, 3, 3, 32, 32, dtype=torch.float64)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in model.trainable_parameters())


def _split(trunk):
    return (TRUNKS[trunk][0],)


@pytest.mark.parametrize("embedded", [True, False])
def test_positions_are_interpolated_as_timm_does(embedded, tmp_path):
    options = {"reg_tokens": 2, "no_embed_class": not embedded}
    theirs = timm_model("vit_base_patch16_224", **options)
    model, report = adapted(theirs, tmp_path / "vit.safetensors", img_size=48)
    assert any("interpolated from 4×4 patches (32 px) to 6×6 (48 px)" in line for line in report.lines)
    theirs.set_input_size(img_size=48)
    frames = torch.randn(3, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        truth = theirs.forward_head(theirs.forward_features(frames), pre_logits=True)
        got = model.forward_features(frames.transpose(0, 1)[None])[0]
    assert (got - truth).norm() <= 1e-5 * truth.norm()  # positions are resampled in fp32


def test_a_file_without_a_head_a_torch_file_and_a_saved_trunk_are_taken(tmp_path):
    theirs = timm_model("vit_base_patch16_224")
    model, report = adapted(theirs, tmp_path / "vit.safetensors")
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("head.")}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "vit.pth")
    save_trunk(model, tmp_path / "trunk.safetensors")
    for file in ("vit.pth", "trunk.safetensors"):
        twin = create_model("aim_vit_b16_in21k", **model.config).double()
        assert load_weights(twin, tmp_path / file).sha256 == report.sha256


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hugging Face cache of a machine without network, which holds weights of timm's test_vit alone."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--timm--test_vit.r160_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit")
    save_file(theirs.state_dict(), snapshot / "model.safetensors")
    return theirs


def test_a_tag_is_found_in_the_cache_and_gives_its_normalisation(cache):
    model = create_model("timm:test_vit", num_frames=2, mean=(1, 2, 3))
    report = load_weights(model, "timm:test_vit.r160_in1k")
    assert (report.kind, model.mean, model.img_size) == ("timm", (127.5, 127.5, 127.5), 160)
    assert "mean [127.5, 127.5, 127.5]" in report.lines[-1]
    assert torch.equal(model.blocks[5].mlp.fc2.weight, cache.blocks[5].mlp.fc2.weight)


@pytest.mark.parametrize("tag", ["timm:test_vit2.r160_in1k", "timm:test_vit2"])
def test_a_tag_that_cannot_be_fetched_is_one_line_with_the_way_out(cache, tag):
    with pytest.raises(WeightsError) as caught:
        load_weights(create_model("timm:test_vit2"), tag)
    assert "\n" not in str(caught.value)
    for part in (tag, "offline?", "timm/test_vit2.r160_in1k", "model.safetensors"):
        assert part in str(caught.value)


def test_an_unknown_tag_is_answered_with_the_nearest():
    with pytest.raises(WeightsError, match="vit_base_patch16_224.augreg_in21k"):
        load_weights(create_model("aim_vit_imagenet_demo"), "timm:vit_base_patch16_224.augreg_in22k")


def test_a_name_makes_the_trunk_with_its_own_size_and_normalisation():
    with torch.device("meta"):
        model = create_model("timm:vit_small_patch14_reg4_dinov2.lvd142m", img_size=224)
    assert (model.embed_dim, model.depth, model.num_heads, model.patch_size) == (384, 12, 6, 14)
    assert (model.reg_tokens, model.no_embed_class, model.init_values) == (4, True, 1e-5)
    assert (model.img_size, model.num_tokens) == (224, 1 + 4 + 16 * 16)
    assert model.mean == pytest.approx((123.675, 116.28, 103.53))
    with torch.device("meta"):
        assert create_model("timm:vit_base_patch16_224.augreg_in21k").mean == (127.5, 127.5, 127.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:swin_tiny_patch4_window7_224", "take aim_swin_b"),
        ("timm:vit_base_patch16_xp_224", "QkNorm|attention and MLP in parallel"),
        ("timm:cait_xxs24_224", r"class attention and talking heads \(CaiT\)"),
        ("timm:eva02_enormous_patch14_clip_224", "norms after attention and MLP instead of before"),
        ("timm:vit_relpos_base_patch32_plus_rpn_256", "res-post-norm"),
        ("timm:resnet18", "timm's ResNet"),
        ("timm:vit_bas_patch16_224", "vit_base_patch16_224"),
        ("timm:vit_base_patch16_224.augreg_in22k", "augreg_in21k"),
    ],
)
def test_what_is_not_built_is_refused_by_its_name(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        create_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (("vit_base_patch16_224", {"embed_dim": 64}), "its width is 64, the model's 32"),
        (("vit_base_patch16_224", {"depth": 3}), "its depth is 3, the model's 2"),
        (("vit_base_patch16_224", {"init_values": 0.1}), "its LayerScale is there, the model's not"),
        (("vit_base_patch16_224", {"qk_norm": True}), "its qk-norm is there"),
        (("vit_base_patch16_224", {"class_token": False, "global_pool": "avg"}), "its class token is not"),
        (("vit_base_patch16_siglip_224", {}), "attention pooling"),
        (("deit_tiny_distilled_patch16_224", {}), "a distillation token"),
    ],
)
def test_weights_of_another_trunk_are_refused_and_the_model_is_left(theirs, message, tmp_path):
    name, overrides = theirs
    save_file(timm_model(name, **overrides).state_dict(), tmp_path / "vit.safetensors")
    model = create_model("aim_vit_b16_in21k", **vit_arguments(timm_model("vit_base_patch16_224")))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(model, tmp_path / "vit.safetensors")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_in_other_names_are_refused_saying_which(trunk: Path):
    with pytest.raises(WeightsError, match="its names are those of a CLIP ViT"):
        load_weights(create_model("aim_vit_imagenet_demo"), trunk)
