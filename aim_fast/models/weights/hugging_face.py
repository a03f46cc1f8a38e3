"""Tensors in the names of Hugging Face transformers, brought to CLIP's names or timm's; and what its config tells.

    CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection     ->  OpenAI's names (visual.…, the text tower beside)
    ViTModel, Dinov2Model, Dinov2WithRegistersModel, IJepaModel   ->  timm's, and those with a classifier likewise
    XCLIPModel                                                    ->  its authors'
    DINOv3ViTModel, SiglipVisionModel, Aimv2VisionModel           ->  timm's
    SiglipModel                                                   ->  open_clip's (visual.trunk.…, text.…)

Both spellings are taken: that of ``save_pretrained`` and that of ``state_dict()`` since transformers 5. Query, key and
value become one matrix, those of SigLIP's pooling a query beside key and value; projections [out, in] are turned where
CLIP has them as [in, out]. A model of another structure (BEiT, DeiT with a distillation token) keeps the part that
tells it, for whoever refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from aim_fast.errors import WeightsError

_CLIP_PATCHES = re.compile(r"(vision_model\.)?embeddings\.patch_embedding\.weight")
_VIT_PATCHES = "embeddings.patch_embeddings.projection.weight"
_PATCHES = re.compile(r"(?:.*\.)?embeddings\.patch_embed(?:dings?)?\.(?:projection\.)?weight")
_LAYER = r"(?:model\.|encoder\.)?layers?\.(\d+)\."
_LEFT_OUT = re.compile(r".*embeddings\.position_ids|(?:pooler|classifier|decoder)\..*")

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
    "pre_layernorm.": "ln_pre.",  # XCLIPModel's
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
    "mlp.weights_out.": "mlp.w3.",
    "mlp.down_proj.": "mlp.w3.",
}
_VIT = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.mask_token": "mask_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
_DINOV3 = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.": "patch_embed.proj.",
}
_DINOV3_LAYER = {
    "attention.o_proj.": "attn.proj.",
    "layer_scale1.lambda1": "gamma_1",
    "layer_scale2.lambda1": "gamma_2",
    "mlp.gate_proj.": "mlp.fc1_g.",
    "mlp.down_proj.": "mlp.fc2.",
}
_SIGLIP = {
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "embeddings.position_embedding.weight": "pos_embed",
    "post_layernorm.": "norm.",
    "head.probe": "attn_pool.latent",
    "head.attention.out_proj.": "attn_pool.proj.",
    "head.layernorm.": "attn_pool.norm.",
    "head.mlp.": "attn_pool.mlp.",
}
_SIGLIP_LAYER = {"layer_norm1.": "norm1.", "layer_norm2.": "norm2.", "self_attn.out_proj.": "attn.proj."}
_AIMV2 = {
    "embeddings.patch_embed.": "patch_embed.proj.",
    "embeddings.rms_norm.": "patch_embed.norm.",
    "embeddings.position_embedding.weight": "pos_embed",
    "rms_norm.": "norm.",
}
_AIMV2_LAYER = {
    "rms_norm1.": "norm1.",
    "rms_norm2.": "norm2.",
    "attention.out_proj.": "attn.proj.",
    "ffn.gate_proj.": "mlp.fc1_g.",
    "ffn.up_proj.": "mlp.fc1_x.",
    "ffn.down_proj.": "mlp.fc2.",
}
# Query, key or value, in the old spelling or the new.
_PART = re.compile(r"(?:self_attn|attention)\.(?:attention\.)?(q_proj|k_proj|v_proj|query|key|value)\.(weight|bias)")


def from_hugging_face(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """``tensors`` in CLIP's or timm's names where they are one of Hugging Face's models above; others as they are.

    Raises WeightsError for a SigLIP 2 that takes pictures of any shape, which has the names of a SigLIP.
    """
    if any(name.endswith("embeddings.patch_embedding.bias") for name in tensors):
        return _siglip(tensors, where)
    if "prompts_visual_projection" in tensors:
        return _x_clip(tensors)
    if any(map(_CLIP_PATCHES.fullmatch, tensors)):
        return _clip(tensors)
    if _VIT_PATCHES in tensors and any(re.match(_LAYER + r"(layernorm_before|norm1)\.", name) for name in tensors):
        return _renamed(_gates_joined(tensors), _VIT, _VIT_LAYER, "blocks.", "attn.qkv.")
    if "embeddings.patch_embeddings.weight" in tensors:
        return _dinov3(tensors)
    if any(name.endswith("embeddings.patch_embed.weight") for name in tensors):
        return _aimv2(tensors)
    return dict(tensors)


def _gates_joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's gated MLPs of ``state_dict()`` as they are saved: the gate and what it gates in one matrix."""
    found = dict(tensors)
    for gate in [name for name in tensors if ".mlp.gate_proj." in name]:
        if (up := gate.replace("gate_proj", "up_proj")) in found:
            found[gate.replace("gate_proj", "weights_in")] = torch.cat([found.pop(gate), found.pop(up)])
    return found


def _dinov3(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    gated = any(".gate_proj." in name for name in tensors)
    layer = _DINOV3_LAYER | {"mlp.up_proj.": "mlp.fc1_x." if gated else "mlp.fc1."}
    kept = {name: tensor for name, tensor in tensors.items() if name != "embeddings.mask_token"}
    return _renamed(kept, _DINOV3, layer, "blocks.", "attn.qkv.")


def _aimv2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without a text tower beside it, and without the attention pooling, which timm has not."""
    beside = ("head.", "text_", "visual_projection.", "logit_scale")
    image = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    image = {name: tensor for name, tensor in image.items() if not name.startswith(beside)}
    return _with_positions(_renamed(image, _AIMV2, _AIMV2_LAYER, "blocks.", "attn.qkv."))


def _siglip(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    if any(t.ndim == 2 for name, t in tensors.items() if name.endswith("embeddings.patch_embedding.weight")):
        raise WeightsError(
            f"{where} is a SigLIP 2 of pictures of any shape (NaFlex), on which no method is built here: take one of a "
            "fixed size"
        )
    whole = {name.removeprefix("vision_model."): t for name, t in tensors.items() if not name.startswith("text_model.")}
    beside = ("logit_scale", "logit_bias")
    image = {name: tensor for name, tensor in whole.items() if name not in beside}
    for kind in ("weight", "bias"):
        if (packed := image.pop(f"head.attention.in_proj_{kind}", None)) is not None:
            third = len(packed) // 3
            image[f"attn_pool.q.{kind}"], image[f"attn_pool.kv.{kind}"] = packed[:third], packed[third:]
    found = _with_positions(_renamed(image, _SIGLIP, _SIGLIP_LAYER, "blocks.", "attn.qkv."))
    text = {n.removeprefix("text_model."): t for n, t in tensors.items() if n.startswith("text_model.")}
    if not text:
        return found
    top = {**_CLIP, "head.": "text_projection."}
    text = _renamed(text, top, _CLIP_LAYER, "transformer.resblocks.", "attn.in_proj_")
    found = {f"visual.trunk.{name}": tensor for name, tensor in found.items()}
    return found | {f"text.{name}": t for name, t in text.items()} | {n: whole[n] for n in beside if n in whole}


def _with_positions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A table of positions ``[P, D]`` as timm has it, ``[1, P, D]``."""
    positions = tensors.get("pos_embed")
    return tensors if positions is None or positions.ndim == 3 else tensors | {"pos_embed": positions[None]}


def _clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _x_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    clip: dict[str, Tensor] = {}
    mit: dict[str, Tensor] = {}
    prompts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("mit."):
            mit[name.removeprefix("mit.")] = tensor
        elif name.startswith("prompts_"):
            name = name.replace("layernorm", "ln" if name.startswith("prompts_visual_") else "norm")
            prompts[name.replace("projection", "proj")] = tensor
        elif match := re.fullmatch(r"(.*message_attn\.)([qkv])_proj\.(\w+)", name):
            three = [tensors[f"{match[1]}{letter}_proj.{match[3]}"] for letter in "qkv"]
            clip[f"{match[1]}in_proj_{match[3]}"] = torch.cat(three)
        else:
            clip[name] = tensor
    top = {"position_embedding": "positional_embedding"}
    mit = _renamed(mit, top, _CLIP_LAYER, "resblocks.", "attn.in_proj_")
    return _clip(clip) | {f"mit.{name}": tensor for name, tensor in mit.items()} | prompts


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
            found |= {f"{name.partition('.qkv.')[0]}.{letter}_bias": part for letter, part in three.items()}
    return found


def _begin(name: str, table: Mapping[str, str]) -> str:
    return next((ours + name.removeprefix(theirs) for theirs, ours in table.items() if name.startswith(theirs)), name)


def has_hugging_face_names(names: Iterable[str]) -> bool:
    """Whether names, under whatever prefix, are those of a ViT of Hugging Face's."""
    return any(map(_PATCHES.fullmatch, names))
