"""Names and layouts of flax in torch's: checkpoints of ViViT, MTV and TokenLearner as their authors' JAX code has them.

kernels [in, out], of convolutions [t, h, w, in, out]      ->  [out, in], [out, in, t, h, w]
query, key, value [in, h, d], out [h, d, out]              ->  qkv [3D, in], proj [out, D]
SpatialTransformer.encoderblock_3.MlpBlock_0.Dense_0       ->  spatial.blocks.3.mlp.fc1
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# In this order, each on what the others left.
_NAMES = {
    r"^SpatialTransformer\.": "spatial.",
    r"^TemporalTransformer\.": "temporal.",
    r"^cls_SpatialTransformer$": "spatial.cls_token",
    r"^cls_TemporalTransformer$": "temporal.cls_token",
    r"^Transformer\.TokenLearnerModule(?:V11)?_0\.LayerNorm_0\.": "token_learner.norm.",
    r"^Transformer\.TokenLearnerModule_0\.Conv_": "token_learner.convolutions.",
    r"^Transformer\.TokenLearnerModuleV11_0\.token_masking\.": "token_learner.",
    r"^Transformer\.": "encoder.",
    r"^embedding_view(\d+)\.": r"embeddings.\1.",
    r"^cls_view(\d+)$": r"cls_tokens.\1",
    r"^cls_global$": "global_encoder.cls_token",
    r"^MultiviewEncoder\.": "",
    r"^posembed_input_view(\d+)\.pos_embedding$": r"pos_embeds.\1",
    r"^encoderblock_(\d+)_view(\d+)\.": r"views.\2.\1.",
    r"^cross_view_encoderblock_(\d+)\.msa_ln_view(\d+)\.": r"views.\2.\1.norm1.",
    r"^cross_view_encoderblock_(\d+)\.msa_view(\d+)\.": r"views.\2.\1.attn.",
    r"^cross_view_encoderblock_(\d+)\.mlp_ln_view(\d+)\.": r"views.\2.\1.norm2.",
    r"^cross_view_encoderblock_(\d+)\.mlp_view(\d+)\.": r"views.\2.\1.mlp.",
    r"^cross_view_encoderblock_(\d+)\.cross_attention_ln_view(\d+)\.": r"cross_views.\1.norms.\2.",
    r"^cross_view_encoderblock_(\d+)\.cross_attention_view(\d+)_\d+\.": r"cross_views.\1.attentions.\2.",
    r"^output_projection\.": "fc_cls.",
    r"\bposembed_input\.pos_embedding$": "pos_embed",
    r"\bencoder_norm\.": "norm.",
    r"\bencoderblock_(\d+)\.": r"blocks.\1.",
    r"\bMultiHeadDotProductAttention_0\.": "attn.",
    r"\bMlpBlock_0\.": "mlp.",
    r"\bLayerNorm_0\.": "norm1.",
    r"\bLayerNorm_1\.": "norm2.",
    r"\bDense_0\.": "fc1.",
    r"\bDense_1\.": "fc2.",
    r"\bscale$": "weight",
}
# One product for all that is made of the same tokens.
_JOINT, _CROSSED = {"qkv": ("query", "key", "value")}, {"q": ("query",), "kv": ("key", "value")}
_ATTENTION = re.compile(r"(.+\.)(query|key|value|out)\.(kernel|bias)")


def from_flax(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of a flax model, joined by dots, in this project's names and layouts; others as they are."""
    if not any(name.endswith(".kernel") for name in tensors):
        return dict(tensors)
    found: dict[str, Tensor] = {}
    attentions: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        for theirs, ours in _NAMES.items():
            name = re.sub(theirs, ours, name)
        if match := _ATTENTION.fullmatch(name):
            attentions.setdefault(match[1], {})[f"{match[2]}.{match[3]}"] = tensor
        elif name.endswith(".kernel"):  # the two axes of channels come last
            found[name.removesuffix("kernel") + "weight"] = tensor.movedim((-1, -2), (0, 1)).contiguous()
        else:
            found[name] = tensor
    for prefix, parts in attentions.items():
        found[f"{prefix}proj.weight"] = parts["out.kernel"].flatten(0, 1).T.contiguous()
        found[f"{prefix}proj.bias"] = parts["out.bias"]
        for name, projections in (_CROSSED if prefix.startswith("cross_views.") else _JOINT).items():
            found[f"{prefix}{name}.weight"] = torch.cat([parts[f"{one}.kernel"].flatten(1).T for one in projections])
            found[f"{prefix}{name}.bias"] = torch.cat([parts[f"{one}.bias"].flatten() for one in projections])
    return found
