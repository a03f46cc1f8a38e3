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


def vit_arguments(module: nn.Module) -> dict[str, Any]:
    """Arguments of :class:`ImageNetViT` that make the structure of a timm ``VisionTransformer``.

    Raises ValueError that names what the module has and a plain ViT has not.
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    if type(module) is not VisionTransformer:
        raise ValueError(f"a structure of its own (timm's {type(module).__name__})")
    block: Any = module.blocks[0]
    if type(module.patch_embed) is not PatchEmbed:
        raise ValueError(f"a stem of its own ({type(module.patch_embed).__name__})")
    if odd := _odd_block(block) or _odd_tail(module):
        raise ValueError(odd)
    height, width = module.patch_embed.img_size or (0, 0)
    side, *other = set(module.patch_embed.patch_size)
    if height != width or other:
        raise ValueError("pictures or patches that are not square")
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
        "activation": _ACTIVATIONS[type(block.mlp.act).__name__],
    }


# Of what timm's names hold, the family of the recipes.
_FAMILIES = {"dinov3": "dinov3", "siglip": "siglip2", "vit_pe_": "pe", "eva02": "eva02"}
_ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu"}


def _odd_block(block: Any) -> str | None:
    """What of a block is not built here, in the field's words."""
    from timm.layers import Attention, Mlp
    from timm.models.vision_transformer import Block

    if type(block) is not Block:
        return f"blocks of its own ({type(block).__name__})"
    if type(block.attn) is not Attention:
        return f"attention of its own ({type(block.attn).__name__})"
    if not isinstance(block.norm1, nn.LayerNorm):
        return (
            "RMS norms" if "Rms" in type(block.norm1).__name__ else f"norms of its own ({type(block.norm1).__name__})"
        )
    if block.norm1.weight is None or block.norm1.bias is None:
        return "norms without weight or bias"
    if type(block.mlp) is not Mlp:
        gated = (
            "gated MLPs (SwiGLU)" if "Glu" in type(block.mlp).__name__ or "GLU" in type(block.mlp).__name__ else None
        )
        return gated or f"MLPs of its own ({type(block.mlp).__name__})"
    if type(block.mlp.act).__name__ not in _ACTIVATIONS or getattr(block.mlp.act, "approximate", "none") != "none":
        return f"the activation {block.mlp.act}"
    if not isinstance(block.mlp.norm, nn.Identity) or not isinstance(block.attn.norm, nn.Identity):
        return "norms inside attention or MLP (scale norms)"
    if getattr(block.attn, "gate", None) is not None:
        return "gated attention"
    if block.attn.qkv.out_features != 3 * block.attn.proj.out_features:
        return "attention of another width than its tokens"
    return None


def _odd_tail(module: Any) -> str | None:
    if module.pos_embed is None:
        return "no positional embedding"
    if module.attn_pool is not None or module.global_pool not in ("token", "avg"):
        return f"{module.global_pool} pooling"
    if module.pool_include_prefix:
        return "pooling over the prefix tokens"
    norms = [isinstance(norm, nn.LayerNorm) for norm in (module.norm, module.fc_norm)]
    return None if sum(norms) == 1 else "no last norm" if not any(norms) else "two last norms"


def _tags(bare: str) -> list[str]:
    import timm

    return [name.partition(".")[2] for name in timm.list_pretrained(f"{bare}.*")]
