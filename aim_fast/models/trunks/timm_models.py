"""Models by timm's names, ``timm:vit_small_patch14_reg4_dinov2``: any plain ViT that timm has, no weights.

The structure is read from timm's own module, made without memory for its weights; image size and normalisation are
those of the name's tag (``.lvd142m``), or of its usual one. A trunk of another structure is refused by
the structure's name.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from aim_fast.errors import UsageError, nearest
from aim_fast.models.entry import Entry
from aim_fast.models.trunks.vit import ImageNetViT
from aim_fast.models.weights.timm_tags import TIMM_PREFIX, timm_normalisation


@functools.cache
def timm_entry(name: str) -> Entry:
    """The model of ``timm:NAME``, with the image size and the normalisation of timm's tag.

    Raises UsageError for a name that timm does not know (with the nearest that it does), and for a trunk on which AIM
    is not built, naming what it has that a plain ViT has not.
    """
    import timm  # imports torchvision: seconds that nobody with a name of ours should wait

    known = name.removeprefix(TIMM_PREFIX)
    bare, _, tag = known.partition(".")
    if not timm.is_model(bare):
        raise UsageError(f"timm has no model {bare!r} (in {name!r}): {nearest(bare, timm.list_models(), 3)}")
    if tag and tag not in (tags := _tags(bare)):
        raise UsageError(f"timm's {bare} has no tag {tag!r}: {nearest(tag, tags)}")
    from aim_fast.models.trunks.timm import TimmViT, structure  # imports timm, too

    mean, std = timm_normalisation(known)
    pixels = {"mean": mean, "std": std}
    try:
        return Entry(ImageNetViT, vit_arguments(structure(known)) | pixels, "in21k_b16")
    except ValueError:
        family = next((family for part, family in _FAMILIES.items() if part in known), "in21k_b16")
        return Entry(TimmViT, trunk_arguments(known, name) | pixels, family)


def trunk_arguments(architecture: str, name: str) -> dict[str, Any]:
    """Arguments of :class:`TimmViT` that make timm's ``architecture``; ``name``: what it was called by.

    Raises UsageError that names what it has and no trunk here has.
    """
    from aim_fast.models.trunks.timm import sizes_of

    try:
        sizes = sizes_of(architecture)
    except ValueError as error:
        raise UsageError(f"{name}: it has {error}, on which no method is built here: see docs/trunks.md") from None
    return sizes | {"architecture": architecture}


def vit_arguments(module: Any) -> dict[str, Any]:
    """Arguments of :class:`ImageNetViT` that make the structure of a timm ``VisionTransformer``.

    Raises ValueError for one that is no plain ViT.
    """
    if not _is_plain(module):
        raise ValueError(f"timm's {type(module).__name__} is no plain ViT")
    from aim_fast.models.trunks.timm_block import activation_of

    block: Any = module.blocks[0]
    (height, _), (side,) = module.patch_embed.img_size or (0, 0), set(module.patch_embed.patch_size)
    embed_dim = int(module.embed_dim)
    prefix, registers = int(module.num_prefix_tokens), int(getattr(module, "num_reg_tokens", 0))
    norms = [m for m in module.modules() if isinstance(m, nn.LayerNorm)]
    return {
        "img_size": height,
        "patch_size": side,
        "embed_dim": embed_dim,
        "depth": len(module.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / embed_dim,
        "class_token": prefix > registers,
        "reg_tokens": registers,
        "no_embed_class": bool(module.no_embed_class) and prefix > 0,
        "pre_norm": isinstance(module.norm_pre, nn.LayerNorm),
        "global_pool": module.global_pool,
        "fc_norm": isinstance(module.fc_norm, nn.LayerNorm),
        "init_values": getattr(block.ls1, "init_values", None),
        "qk_norm": isinstance(block.attn.q_norm, nn.LayerNorm),
        "qkv_bias": block.attn.qkv.bias is not None,
        "proj_bias": block.attn.proj.bias is not None,
        "eps": norms[0].eps,
        "activation": activation_of(block.mlp),
    }


# Of what timm's names hold, the family of the recipes.
_FAMILIES = {"dinov3": "dinov3", "siglip": "siglip2", "vit_pe_": "pe", "eva02": "eva02"}


def _is_plain(module: Any) -> bool:
    """Whether a module of timm's has nothing but what :class:`ImageNetViT` has."""
    from timm.layers import Attention, Mlp, PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    from aim_fast.models.trunks.timm_block import activation_of

    if type(module) is not VisionTransformer or type(module.patch_embed) is not PatchEmbed:
        return False
    block: Any = module.blocks[0]
    stem: Any = module.patch_embed
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    norm = block.norm1
    return (
        len({*(stem.img_size or (0, 0))}) == len({*stem.patch_size}) == 1
        and isinstance(norm, nn.LayerNorm)
        and norm.weight is not None
        and norm.bias is not None
        and activation_of(block.mlp) is not None
        and all(isinstance(part.norm, nn.Identity) for part in (block.attn, block.mlp))
        and getattr(block.attn, "gate", None) is None
        and block.attn.qkv.out_features == 3 * block.attn.proj.out_features
        and module.pos_embed is not None
        and module.attn_pool is None
        and module.global_pool in ("token", "avg")
        and not module.pool_include_prefix
        and sum(isinstance(last, nn.LayerNorm) for last in (module.norm, module.fc_norm)) == 1
    )


def _tags(bare: str) -> list[str]:
    import timm

    return [name.partition(".")[2] for name in timm.list_pretrained(f"{bare}.*")]
