"""An AIM block on timm's ViT: its names, and what its plain ViTs have beyond CLIP's.

The mathematics and shapes are those of :mod:`aim_kernels.adaptation`, with ``attn`` and ``mlp`` standing for all that
timm adds to the residual stream:

    LayerScale   attn(z) = γ1 · (Wo a + bo),  mlp(y) = γ2 · (Wproj h + bproj)
    qk-norm      a = softmax(ln_q(q)·ln_k(k)ᵀ/√d)·v, a norm over the d channels of each head
    no biases    those of qkv, or of the three output projections, are zero

LayerScale is a row factor of a frozen projection, so γ·W and γ·b are handed to the fused sub-blocks, formed anew in
each pass. qk-norm stands between two products that those sub-blocks do not part: such a block runs its two attentions
through autograd over the attention operators, and the joint sub-block as ever. Source: timm's ``vision_transformer``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_kernels.adaptation import (
    adapter_reference,
    attention_over_space,
    attention_over_time,
    joint_adaptation_reference,
)
from aim_kernels.choices import Memory
from aim_kernels.layer_norm import layer_norm
from aim_kernels.modules import Adapter, AIMBlock
from aim_kernels.precision import compute_dtype
from aim_kernels.scaled_product import frozen_linear
from aim_kernels.spatial_attention import spatial_attention
from aim_kernels.temporal_attention import temporal_attention
from aim_kernels.weights import AttentionWeights, MLPWeights, NormWeights


class AIMViTBlock(AIMBlock):
    """A frozen block of timm's ViT with AIM's temporal, spatial and joint adaptation.

    Input and output ``[..., T, N, dim]``. Parameter names are timm's: frozen ``norm1, attn.{qkv, proj, q_norm, k_norm},
    ls1.gamma, norm2, mlp.{fc1, fc2}, ls2.gamma``, trainable ``S_Adapter, T_Adapter, T_Adapter_in, MLP_Adapter``.

    Args:
        init_values: what LayerScale's factors start at, None for no LayerScale.
        qk_norm: whether queries and keys are normalised.
        qkv_bias, proj_bias: whether the first, and all other projections have biases.

    The other arguments are those of :class:`~aim_kernels.modules.AIMBlock`, with the defaults of timm's ViT.
    """

    attn: _Attention  # type: ignore[assignment]
    mlp: _MLP  # type: ignore[assignment]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        init_values: float | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        **others: Any,
    ) -> None:
        # before the base class, which makes the trunk out of them
        self._parts = {"qk_norm": qk_norm, "qkv_bias": qkv_bias, "proj_bias": proj_bias}
        self._init_values = init_values
        super().__init__(dim, num_heads, mlp_ratio, **{"activation": "gelu", "eps": 1e-6, **others})

    def _make_trunk(self, hidden: int) -> None:
        values, bias = self._init_values, self._parts["proj_bias"]
        self.norm1 = nn.LayerNorm(self.dim, eps=self.eps)
        self.attn = _Attention(self.dim, self.num_heads, self.eps, **self._parts)
        self.ls1 = None if values is None else _LayerScale(self.dim, values)
        self.norm2 = nn.LayerNorm(self.dim, eps=self.eps)
        self.mlp = _MLP(self.dim, hidden, bias)
        self.ls2 = None if values is None else _LayerScale(self.dim, values)

    def reset_parameters(self) -> None:
        """timm's initialisation of the frozen part: truncated normal with std 0.02, zero biases, unit norms."""
        if self.norm1.weight.is_meta:
            return
        for part in (self.norm1, self.norm2, self.attn.q_norm, self.attn.k_norm, self.ls1, self.ls2):
            if part is not None:
                part.reset_parameters()
        for linear in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    @property
    def fused_adapters(self) -> tuple[str, ...]:
        names = super().fused_adapters
        return names if self.attn.q_norm is None else tuple(name for name in names if name == "MLP_Adapter")

    def _adapt(
        self, x: Tensor, temporal_drop: Tensor | None, joint_drop: Tensor | None, memory: Memory, cls_only: bool
    ) -> Tensor:
        if self.attn.q_norm is None:
            return super()._adapt(x, temporal_drop, joint_drop, memory, cls_only)
        x = self._attend_normalised(x, temporal_drop)
        x = x[:, :, :1] if cls_only else x
        return self._adapt_mlp(x, joint_drop, memory)

    def _adapt_reference(self, x: Tensor, temporal_drop: Tensor | None, joint_drop: Tensor | None) -> Tensor:
        if self.attn.q_norm is None:
            return super()._adapt_reference(x, temporal_drop, joint_drop)
        x = self._attend_normalised(x, temporal_drop)
        return joint_adaptation_reference(x, *self.mlp_weights(), **self._joint(joint_drop))

    def _attend_normalised(self, x: Tensor, temporal_drop: Tensor | None) -> Tensor:
        """Temporal and spatial adaptation with normalised queries and keys."""
        if self.T_Adapter is not None:
            branch = self._bottleneck(self._branch(x, over_time=True), self.T_Adapter)
            x = x + (branch if temporal_drop is None else branch * temporal_drop.to(branch.dtype))
        attended = self._branch(x, over_time=False)
        return x + (attended if self.S_Adapter is None else self._bottleneck(attended, self.S_Adapter))

    def _branch(self, x: Tensor, over_time: bool) -> Tensor:
        norm, attention = self.attention_weights()
        heads, fused = self.num_heads, self.backend == "fused"
        if fused:
            z = layer_norm(x, *norm, self.eps, compute_dtype(x, attention.qkv_weight))
        else:
            z = F.layer_norm(x, x.shape[-1:], *norm, self.eps)
        if over_time and self.T_Adapter_in is not None:
            z = self._bottleneck(z, self.T_Adapter_in)
        qkv = self.attn.normalise(frozen_linear(z, attention.qkv_weight, attention.qkv_bias, self.scaled.qkv))
        if over_time:
            attended = temporal_attention(qkv, heads) if fused else attention_over_time(qkv, heads)
        elif fused:
            attended = spatial_attention(qkv, heads, self.attention_backend)
        else:
            attended = attention_over_space(qkv, heads)
        return frozen_linear(attended, attention.out_weight, attention.out_bias, self.scaled.out)

    def _bottleneck(self, z: Tensor, module: Adapter) -> Tensor:
        if self.backend == "fused":
            return module(z)
        out = adapter_reference(z, module.weights)
        return z + out if module.skip else out

    def attention_weights(self) -> tuple[NormWeights, AttentionWeights]:
        qkv, out = self.attn.qkv, _scaled(self.attn.proj, self.ls1)
        return self.norm_weights()[0], AttentionWeights(qkv.weight, _bias(qkv), *out)

    def mlp_weights(self) -> tuple[NormWeights, MLPWeights]:
        fc, proj = self.mlp.fc1, _scaled(self.mlp.fc2, self.ls2)
        return self.norm_weights()[1], MLPWeights(fc.weight, _bias(fc), *proj)

    def norm_weights(self) -> tuple[NormWeights, NormWeights]:
        return NormWeights(self.norm1.weight, self.norm1.bias), NormWeights(self.norm2.weight, self.norm2.bias)


class _Attention(nn.Module):
    """The parameters of timm's attention; the block applies them."""

    def __init__(self, dim: int, num_heads: int, eps: float, qk_norm: bool, qkv_bias: bool, proj_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(dim // num_heads, eps=eps) if qk_norm else None
        self.k_norm = nn.LayerNorm(dim // num_heads, eps=eps) if qk_norm else None
        self.proj = nn.Linear(dim, dim, bias=proj_bias)

    def normalise(self, qkv: Tensor) -> Tensor:
        """Packed ``[..., 3D]`` with the queries and keys of each head normalised, statistics in fp32 at least."""
        heads = qkv.unflatten(-1, (3, self.num_heads, -1))
        wide = torch.promote_types(qkv.dtype, torch.float32)
        parts = [
            F.layer_norm(part.to(wide), part.shape[-1:], norm.weight.to(wide), norm.bias.to(wide), norm.eps).to(
                qkv.dtype
            )
            for part, norm in zip(heads.unbind(-3)[:2], (self.q_norm, self.k_norm))
            if norm is not None
        ]
        return torch.stack([*parts, heads[..., 2, :, :]], dim=-3).flatten(-3)


class _MLP(nn.Module):
    """The parameters of timm's MLP; the block applies them."""

    def __init__(self, dim: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)


class _LayerScale(nn.Module):
    """LayerScale's factors, one a channel."""

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.gamma = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.value)


def _bias(linear: nn.Linear) -> Tensor:
    """Its bias, or zeros where it has none."""
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


def _scaled(linear: nn.Linear, scale: _LayerScale | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``scale(linear(·))``, formed in the factors' dtype and given in the weight's."""
    weight, bias = linear.weight, _bias(linear)
    if scale is None:
        return weight, bias
    gamma = scale.gamma
    return (weight * gamma[:, None]).to(weight.dtype), (bias * gamma).to(bias.dtype)
