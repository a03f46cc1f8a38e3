"""The published structure in plain torch, as a baseline: AIM's block as its public code lays it out.

Tokens are [N, B·T, D]; attention over time rearranges them to [T, B·N, D] and back; every adapter, projection and norm
is a layer of its own; layer norms run in float32; attention is torch's ``scaled_dot_product_attention``, which is what
``nn.MultiheadAttention`` calls today (it formed the N × N probabilities when AIM was published, which the published
memory figures include). The parameters are those of an :class:`~aim_kernels.AIMBlock`: both compute the same.
Source: Yang et al., AIM, ICLR 2023, and its public implementation (ViT_CLIP).
"""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from aim_kernels import Adapter, AIMBlock


class PublishedBlock(nn.Module):
    """``block`` run as published; input and output [B, T, N, D]."""

    backend = "reference"  # what a model asks its blocks for: its stem is plain too

    def __init__(self, block: AIMBlock) -> None:
        super().__init__()
        self.block = block
        self.train(block.training)  # a model that is evaluated drops nothing here either
        self.over_time: SDPBackend | None = None  # torch's own choice
        self.over_space: SDPBackend | None = None

    def forward(self, x: Tensor, cls_only: bool = False) -> Tensor:  # which published code knows nothing of
        b, t, _, _ = x.shape
        block = self.block
        x = rearrange(x, "b t n d -> n (b t) d")
        n = x.shape[0]
        if block.T_Adapter is not None:
            xt = rearrange(x, "n (b t) d -> t (b n) d", t=t)
            normal = _norm(xt, block.ln_1)
            if block.T_Adapter_in is not None:
                normal = block.T_Adapter_in(normal)
            xt = block.T_Adapter(self._attend(normal, self.over_time))
            x = x + self._drop(rearrange(xt, "t (b n) d -> n (b t) d", n=n))
        attended = self._attend(_norm(x, block.ln_1), self.over_space)
        x = x + (attended if block.S_Adapter is None else block.S_Adapter(attended))
        y = _norm(x, block.ln_2)
        hidden = block.mlp.c_fc(y)
        hidden = hidden * torch.sigmoid(1.702 * hidden) if block.activation == "quick_gelu" else F.gelu(hidden)
        x = x + block.mlp.c_proj(hidden)
        if block.MLP_Adapter is not None:
            x = x + self._drop(block.adapter_scale * block.MLP_Adapter(y))
        return rearrange(x, "n (b t) d -> b t n d", b=b)

    def _drop(self, x: Tensor) -> Tensor:
        """Droppath as published code calls it, on the first axis: a token position in all clips and frames."""
        keep = 1 - self.block.drop_path.rate
        if keep == 1 or not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep).div_(keep)

    def _attend(self, x: Tensor, backend: SDPBackend | None) -> Tensor:
        """Self-attention along the first axis of [L, M, D]."""
        attention = self.block.attn
        qkv = heads_first(F.linear(x, attention.in_proj_weight, attention.in_proj_bias), self.block.num_heads)
        with sdpa_kernel(backend) if backend else nullcontext():
            out = F.scaled_dot_product_attention(*qkv)
        return attention.out_proj(out.permute(2, 0, 1, 3).reshape(x.shape))


def heads_first(qkv: Tensor, heads: int) -> list[Tensor]:
    """q, k and v [M, heads, L, d] of [L, M, 3D], as nn.MultiheadAttention hands them to torch's attention."""
    length, many, width = qkv.shape
    parts = (z.reshape(length, many * heads, -1).transpose(0, 1) for z in qkv.chunk(3, -1))
    return [z.view(many, heads, length, width // 3 // heads) for z in parts]


def published(model: nn.Module) -> nn.Module:
    """A copy of an AIM model whose blocks run as published; the copy has its own parameters, of the same values."""
    twin = copy.deepcopy(model)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AIMBlock):
                setattr(parent, name, PublishedBlock(_with_plain_adapters(child)))
    return twin


def _with_plain_adapters(block: AIMBlock) -> AIMBlock:
    for name, child in list(block.named_children()):
        if isinstance(child, Adapter):
            setattr(block, name, _PlainAdapter(child))
    return block


class _PlainAdapter(nn.Module):
    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.D_fc1, self.D_fc2, self.skip = adapter.D_fc1, adapter.D_fc2, adapter.skip

    def forward(self, z: Tensor) -> Tensor:
        out = self.D_fc2(F.gelu(self.D_fc1(z)))
        return z + out if self.skip else out


def _norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.layer_norm(wide, norm.normalized_shape, norm.weight, norm.bias, norm.eps).type(x.dtype)
