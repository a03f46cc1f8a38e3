"""Every family of timm's pre-norm trunks under the methods: timm's own features, fused operators beside plain torch."""

import copy
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from aim_fast.errors import WeightsError
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from aim_fast.models.trunks.timm import build
from aim_fast.models.trunks.vit import ImageNetViT
from tests.models.small_families import SIZES, adapted, clips_of, frame_features, side, small

# A structure of each family, and whether its attention, over time and space, and its MLP are fused.
FAMILIES = {
    "vit_small_patch16_dinov3": (1, 1),
    "vit_base_patch16_dinov3_qkvb": (1, 1),
    "vit_small_plus_patch16_dinov3": (1, 1),
    "vit_base_patch16_siglip_224": (1, 1),
    "vit_base_patch32_siglip_256": (1, 1),
    "vit_so400m_patch14_siglip_224": (1, 1),
    "vit_so400m_patch16_siglip_256": (1, 1),
    "eva02_tiny_patch14_224": (1, 1),
    "eva02_base_patch14_224": (1, 0),
    "eva02_base_patch16_clip_224": (0, 0),
    "eva_giant_patch14_224": (1, 1),
    "vit_pe_core_base_patch16_224": (1, 1),
    "vit_pe_spatial_base_patch16_512": (1, 1),
    "vit_pe_lang_large_patch14_448": (1, 1),
    "aimv2_large_patch14_224": (1, 1),
    "beit_base_patch16_224": (1, 1),
    "beitv2_base_patch16_224": (1, 1),
    "vit_giant_patch14_dinov2": (1, 1),
    "vit_giant_patch14_reg4_dinov2": (1, 1),
    "vit_relpos_small_patch16_224": (1, 1),
    "vit_srelpos_small_patch16_224": (1, 1),
    "deit_base_distilled_patch16_224": (1, 1),
    "vit_intern300m_patch14_448": (1, 1),
    "vit_base_patch16_rope_224": (1, 1),
    "vit_base_patch16_rope_mixed_224": (1, 1),
    "vit_base_patch16_rope_ape_224": (1, 1),
    "vit_base_patch16_rope_mixed_ape_224": (1, 1),
    "test_vit4": (1, 1),
    "vit_betwixt_patch16_rope_reg4_gap_256": (1, 1),
    "vit_medium_patch16_rope_reg1_gap_256": (1, 1),
    "vit_7b_patch16_dinov3": (1, 1),
    "vit_giantopt_patch16_siglip_256": (1, 1),
    "vit_so150m_patch16_reg4_map_256": (1, 1),
    "eva_giant_patch14_clip_224": (1, 1),
    "vit_pe_core_tiny_patch16_384": (1, 1),
    "vit_pe_core_gigantic_patch14_448": (1, 1),
    "vit_pe_lang_gigantic_patch14_448": (1, 1),
    "vit_giant_patch14_reg1_tipsv2": (1, 1),
    "vit_base_patch16_radio_v3": (1, 1),
    "vit_so400m_patch16_radio_v4": (1, 1),
    "beit3_base_patch16_224": (0, 0),
    "vit_relpos_base_patch16_cls_224": (1, 1),
    "vit_relpos_base_patch16_clsgap_224": (1, 1),
    "vit_small_r26_s32_224": (1, 1),
    "vit_tiny_r_s16_p8_224": (1, 1),
    "test_vit3": (1, 1),
}
# Structures that run as the plain ViTs of our own names.
PLAIN = (
    "vit_base_patch14_reg1_tipsv2",
    "vit_small_patch14_dinov2",
    "vit_base_patch16_siglip_gap_224",
    "vit_base_patch32_siglip_gap_256",
    "eva_large_patch14_196",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_so150m2_patch16_reg1_gap_256",
    "vit_little_patch16_reg4_gap_256",
    "deit3_small_patch16_224",
    "flexivit_small",
    "test_vit2",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_frame_features_are_timms_and_fused_is_plain(name, tmp_path):
    theirs = small(name)
    model = adapted(name, tmp_path / "trunk.safetensors", theirs, num_tadapter=2)
    block = model.row[0]
    assert (block.plain_attention, block.plain_mlp) == tuple(map(bool, FAMILIES[name]))
    clips = clips_of(name)
    with torch.no_grad():
        truth = frame_features(theirs, clips)
        got = model.pool(model.run(model.embed(clips), 0, 2))
    assert truth.std() > 0.01
    assert (got - truth).norm() <= 1e-10 * truth.norm()

    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1) if "norm" not in key else None
    plain = copy.deepcopy(model)
    for twin in plain.row:
        twin.backend = "reference"
    losses, gradients = [], []
    for one in (model, plain):
        loss = F.cross_entropy(one(clips), torch.tensor([0, 1]))
        loss.backward()
        losses.append(loss.item())
        gradients.append({key: parameter.grad for key, parameter in one.trainable_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
    for key, gradient in gradients[1].items():
        assert (gradients[0][key] - gradient).norm() <= 1e-8 * max(gradient.norm(), 1e-6), key
        assert gradient.norm() > 0, key


@pytest.mark.parametrize("name", PLAIN)
def test_frame_features_of_plain_structures_are_timms(name, tmp_path):
    theirs = small(name)
    model = adapted(name, tmp_path / "trunk.safetensors", theirs)
    assert isinstance(model, ImageNetViT)
    with torch.no_grad():
        truth, got = frame_features(theirs, clips_of(name)), model.forward_features(clips_of(name))
    assert truth.std() > 0.01
    assert (got - truth).norm() <= 1e-10 * truth.norm()


@pytest.mark.parametrize("method", ["probe", "full", "timesformer"])
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "eva02_base_patch16_clip_224", "beit_base_patch16_224"])
def test_every_method_starts_from_timms_features(name, method, tmp_path):
    theirs = small(name)
    model = adapted(name, tmp_path / "trunk.safetensors", theirs, method=method)
    clips = clips_of(name)
    with torch.no_grad():
        truth = frame_features(theirs, clips)
        assert (model.forward_features(clips) - truth).norm() <= 1e-10 * truth.norm()
    F.cross_entropy(model(clips), torch.tensor([0, 1])).backward()
    trains = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert trains == {key for key, _ in model.trainable_parameters()}
    assert (trains == {"fc_cls.weight", "fc_cls.bias"}) is (method == "probe")


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_base_patch16_siglip_224", "beit_base_patch16_224"])
@pytest.mark.parametrize("method", ["aim", "probe"])
def test_the_attentive_head_reads_all_tokens_of_all_frames(name, method, tmp_path):
    model = adapted(name, tmp_path / "trunk.safetensors", small(name), method=method, head="attentive")
    clips = clips_of(name)
    assert model.forward_features(clips).shape == (2, 3, model.num_tokens, 32)
    F.cross_entropy(model(clips), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for _, parameter in model.trainable_parameters())
    turned = clips[:, :, [2, 0, 1]]
    torch.testing.assert_close(model(turned), model(clips), rtol=1e-9, atol=1e-9)  # while it is new
    nn.init.normal_(model.attentive_time)
    assert not torch.allclose(model(turned), model(clips))
    if method == "probe":
        assert torch.equal(model(model.frozen_features(clips)), model(clips))


def test_a_checkpoint_of_an_adapted_trunk_is_read_back(tmp_path):
    name = "vit_small_patch16_dinov3"
    model = adapted(name, tmp_path / "trunk.safetensors", small(name))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "m.safetensors")
    twin = create_model(f"timm:{name}", **model.config).double()
    assert load_weights(twin, tmp_path / "m.safetensors").kind == "aim"
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    assert twin.config == model.config


@pytest.mark.parametrize("patches", [3, 5])
@pytest.mark.parametrize("name", FAMILIES)
def test_another_image_size_is_timms_resampling(name, patches, tmp_path):
    """Positions, rotations and bias tables of a file at 4 × 4 patches in a smaller and a larger model."""
    theirs = small(name, patches=4)
    model = adapted(name, tmp_path / "trunk.safetensors", theirs, img_size=side(name, patches))
    if hasattr(theirs, "set_input_size"):
        theirs.set_input_size(img_size=side(name, patches))
    else:  # of relative positions alone: timm's own model in the other size, from the same file
        other = build(name, img_size=side(name, patches), **SIZES).double().eval()
        module = sys.modules[type(theirs).__module__]
        other.load_state_dict(module.checkpoint_filter_fn(theirs.state_dict(), other))
        theirs = other
    clips = clips_of(name, patches)
    with torch.no_grad():
        truth, got = frame_features(theirs, clips), model.pool(model.run(model.embed(clips), 0, 2))
        assert (got - truth).norm() <= 1e-5 * truth.norm()


def test_weights_of_another_trunk_are_refused_in_one_line(tmp_path):
    save_file(small("vit_base_patch16_siglip_224").state_dict(), tmp_path / "trunk.safetensors")
    model = create_model("timm:vit_small_patch16_dinov3", **SIZES, img_size=48)
    with pytest.raises(
        WeightsError, match=r"is of another trunk than timm's vit_small_patch16_dinov3: missing "
    ) as caught:
        load_weights(model, tmp_path / "trunk.safetensors")
    assert "\n" not in str(caught.value)


def test_a_block_is_frozen_and_its_names_are_timms():
    with torch.device("meta"):
        model = create_model("timm:vit_small_patch16_dinov3", method="probe")
        theirs = timm.create_model("vit_small_patch16_dinov3", num_classes=0)
    assert {f"trunk.{key}" for key in theirs.state_dict()} == {k for k in model.state_dict() if k.startswith("trunk.")}
    assert not [key for key, parameter in model.trunk.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("of", ["vit_small_plus_patch16_dinov3", "vit_tiny_patch16_224", "vit_base_patch16_siglip_224"])
@pytest.mark.parametrize("trunk", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_a_file_of_another_structure_and_width_is_refused_in_a_short_line(trunk, of, tmp_path):
    file = tmp_path / "t.safetensors"
    other = build(of, **{**SIZES, "embed_dim": 2 * SIZES["embed_dim"], "img_size": side(of)})
    save_file({name: tensor.contiguous() for name, tensor in other.state_dict().items()}, file)
    model = create_model(f"timm:{trunk}", **SIZES, img_size=side(trunk), num_frames=2)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, file)
    line = str(caught.value).replace(str(file), "")
    assert len(line) < 320, line
    assert trunk in line
    assert "NoneType" not in line
