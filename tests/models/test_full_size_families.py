"""A name of each family in its own sizes, on made weights: the library's own features of a frame."""

import pytest
import torch
from safetensors.torch import save_file

from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from aim_fast.models.trunks.timm import build
from aim_fast.models.trunks.vit import ImageNetViT
from tests.models.small_families import frame_features

# And what is less: depth, where the family has no name that fits twice into a small machine, and pictures above 224.
NAMES = {
    "vit_base_patch16_dinov3": {},
    "vit_small_plus_patch16_dinov3": {},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch32_siglip_256": {},
    "eva02_base_patch14_224": {},
    "eva02_base_patch16_clip_224": {},
    "eva_large_patch14_196": {"depth": 6},
    "eva_giant_patch14_224": {"depth": 2},
    "vit_pe_core_base_patch16_224": {},
    "vit_pe_spatial_base_patch16_512": {"img_size": 224},
    "vit_pe_lang_large_patch14_448": {"depth": 6, "img_size": 224},
    "aimv2_large_patch14_224": {"depth": 6},
    "beit_base_patch16_224": {},
    "beitv2_base_patch16_224": {},
    "beit3_base_patch16_224": {},
    "vit_base_patch14_dinov2": {"img_size": 224},
    "vit_giant_patch14_dinov2": {"depth": 2, "img_size": 224},
    "vit_intern300m_patch14_448": {"depth": 6, "img_size": 224},
    "vit_base_patch16_radio_v3": {},
    "vit_base_patch14_reg1_tipsv2": {"img_size": 224},
    "vit_relpos_base_patch16_224": {},
    "deit_base_distilled_patch16_224": {},
    "vit_small_r26_s32_224": {},
    "vit_base_patch16_rope_mixed_224": {},
    "vit_base_mci_224": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_frame_features_are_timms(name, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "trunk.safetensors"
    theirs = build(name, **NAMES[name]).eval()
    for key, parameter in theirs.named_parameters():  # no tensor at a telltale 0 or 1, no LayerScale at nothing
        parameter.add_(0.02 * torch.randn_like(parameter))
        parameter.add_(0.3) if "gamma" in key else None
    save_file({key: tensor.contiguous() for key, tensor in theirs.state_dict().items()}, file)
    model = create_model(f"timm:{name}", method="probe", num_frames=1, **NAMES[name]).eval()
    assert load_weights(model, file).kind == "timm"
    file.unlink()
    side = model.img_size
    clips = torch.randn(1, 3, 1, side, side, dtype=torch.float64)
    truth = frame_features(theirs.double(), clips)
    del theirs
    got = model.double().pool(model.run(model.embed(clips), 0, model.depth))
    got = model.finish(got) if isinstance(model, ImageNetViT) else got
    assert truth.std() > 0.01
    assert (got - truth).norm() <= 1e-10 * truth.norm()
