"""A structure of each family of timm's trunks in small sizes, and the models that are made on it."""

import torch
from safetensors.torch import save_file
from torch import nn

from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from aim_fast.models.trunks.timm import build, sizes_of

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# Of each family one structure for the tests that are long.
EVERY_FAMILY = (
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3",
    "vit_base_patch16_siglip_224",
    "vit_base_patch32_siglip_256",
    "eva02_base_patch14_224",
    "eva02_base_patch16_clip_224",
    "eva_giant_patch14_224",
    "vit_pe_core_base_patch16_224",
    "vit_pe_spatial_base_patch16_512",
    "aimv2_large_patch14_224",
    "beit_base_patch16_224",
    "vit_relpos_small_patch16_224",
    "vit_giant_patch14_dinov2",
    "vit_intern300m_patch14_448",
    "deit_base_distilled_patch16_224",
    "vit_base_patch16_rope_mixed_224",
)


def side(name, patches=3):
    return patches * sizes_of(name)["patch_size"]


def small(name, patches=3):
    """timm's own module in small sizes, every tensor drawn at random, float64."""
    torch.manual_seed(0)
    module = build(name, img_size=side(name, patches), **SIZES).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def adapted(name, file, theirs, **overrides):
    """The model on the weights of timm's module ``theirs``, float64."""
    sizes = {**SIZES, "img_size": side(name), "num_frames": 3, "num_classes": 5, **overrides}
    save_file({key: tensor.contiguous() for key, tensor in theirs.state_dict().items()}, file)
    model = create_model(f"timm:{name}", **sizes).double().eval()
    assert load_weights(model, file).kind == "timm"
    return model


def clips_of(name, patches=3):
    """Normalised pixels ``[2, 3, 3, H, W]``, float64."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 3, *[side(name, patches)] * 2, dtype=torch.float64, generator=generator)


def frame_features(theirs, clips):
    """timm's feature of each frame, ``[B, T, D]``."""
    with torch.no_grad():
        frames = theirs.forward_features(clips.transpose(1, 2).flatten(0, 1))
        return theirs.forward_head(frames, pre_logits=True).unflatten(0, (len(clips), -1))


def family_model(name, method="aim", head="linear", **overrides):
    """A model of one family without anything random in training, all that trains doing something."""
    torch.manual_seed(0)
    sizes = {**SIZES, "img_size": side(name), "num_frames": 4, "num_classes": 5, "method": method, "head": head}
    model = create_model(f"timm:{name}", **{**sizes, **overrides})
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "rate"):
            module.rate = 0.0
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and "norm" not in key:
            nn.init.normal_(parameter, std=0.05)
    return model


def family_frames(name):
    """uint8 clips of the family's small models."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 4, side(name), side(name), 3), dtype=torch.uint8, generator=generator)
