"""Tensors in the names of Hugging Face transformers, brought to CLIP's names or timm's; and what its config tells.

    CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection     ->  OpenAI's names (visual.…, the text tower beside)
    ViTModel, Dinov2Model, Dinov2WithRegistersModel, IJepaModel   ->  timm's, and those with a classifier likewise

Both spellings are taken: that of ``save_pretrained`` and that of ``state_dict()`` since transformers 5. Query, key and
value become one matrix, projections [out, in] are turned where CLIP has them as [in, out]. A model of another structure
(BEiT, DeiT with a distillation token, DINOv2 giant) keeps the part that tells it, for whoever refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from aim_fast.errors import WeightsError

_CLIP_PATCHES = re.compile(r"(vision_model\.)?embeddings\.patch_embedding\.weight")
_VIT_PATCHES = "embeddings.patch_embeddings.projection.weight"
_PATCHES = re.compile(r"(?:.*\.)?embeddings\.patch_embeddings?\.(?:projection\.)?weight")
_LAYER = r"(?:encoder\.)?layers?\.(\d+)\."
_LEFT_OUT = re.compile(r".*embeddings\.(?:position_ids|mask_token)|(?:pooler|classifier|decoder)\..*")

_CLIP_LAYER = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}
_CLIP = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "final_layer_norm.": "ln_final.",
}
_VIT_LAYER = {
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "attention.output.dense.": "attn.proj.",
    "attention.o_proj.": "attn.proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in.": "mlp.w12.",
}
_VIT = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
# Query, key or value, in the old spelling or the new.
_PART = re.compile(r"(?:self_attn|attention)\.(?:attention\.)?(q_proj|k_proj|v_proj|query|key|value)\.(weight|bias)")


def from_hugging_face(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """``tensors`` in CLIP's or timm's names where they are Hugging Face's CLIP, DINOv2 or ViT; others as they are.

    Raises WeightsError for a SigLIP, which has the names of a CLIP.
    """
    if any(map(_CLIP_PATCHES.fullmatch, tensors)):
        return _clip(tensors, where)
    if _VIT_PATCHES in tensors and any(re.match(_LAYER + r"(layernorm_before|norm1)\.", name) for name in tensors):
        return _renamed(tensors, _VIT, _VIT_LAYER, "blocks.", "attn.qkv.")
    return dict(tensors)


def _clip(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    if any(name.endswith("embeddings.patch_embedding.bias") for name in tensors):
        raise WeightsError(
            f"{where} is a SigLIP of Hugging Face transformers: it has attention pooling and no class token, on which "
            "AIM is not built: take a CLIP"
        )
    found: dict[str, Tensor] = {}
    rows = "transformer.resblocks."
    text = {n.removeprefix("text_model."): t for n, t in tensors.items() if n.startswith("text_model.")}
    found |= _renamed(text, _CLIP, _CLIP_LAYER, rows, "attn.in_proj_")
    ends = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
    found |= {ours: tensors[theirs].T for theirs, ours in ends.items() if theirs in tensors}
    found |= {name: tensors[name] for name in ("logit_scale",) if name in tensors}
    image = {n: t for n, t in tensors.items() if not n.startswith("text_model.") and n not in (*ends, "logit_scale")}
    image = {name.removeprefix("vision_model."): tensor for name, tensor in image.items()}
    image = _renamed(image, _CLIP, _CLIP_LAYER, rows, "attn.in_proj_")
    return found | {f"visual.{name}": tensor for name, tensor in image.items()}


def _renamed(
    tensors: Mapping[str, Tensor], top: Mapping[str, str], layer: Mapping[str, str], rows: str, packed: str
) -> dict[str, Tensor]:
    """``top`` and ``layer``: what names begin with, outside and inside of a layer; ``rows``, ``packed``: of the names
    of layers, and of queries, keys and values in one."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if _LEFT_OUT.fullmatch(name):
            continue
        if (inside := re.match(_LAYER, name)) is None:
            found[_begin(name, top)] = tensor
            continue
        rest, block = name[inside.end() :], f"{rows}{inside[1]}."
        if part := _PART.fullmatch(rest):
            parts.setdefault(f"{block}{packed}{part[2]}", {})[part[1][0]] = tensor
        else:
            found[block + _begin(rest, layer)] = tensor
    for name, three in parts.items():
        if three.keys() == {"q", "k", "v"}:
            found[name] = torch.cat([three[letter] for letter in "qkv"])
        else:
            found |= {f"{name.rpartition('.')[0]}.{letter}_bias": part for letter, part in three.items()}
    return found


def _begin(name: str, table: Mapping[str, str]) -> str:
    return next((ours + name.removeprefix(theirs) for theirs, ours in table.items() if name.startswith(theirs)), name)


def has_hugging_face_names(names: Iterable[str]) -> bool:
    """Whether names, under whatever prefix, are those of a ViT of Hugging Face's."""
    return any(map(_PATCHES.fullmatch, names))
