"""Side4Video's network, named as published. The mathematics is in :mod:`aim_fast.models.methods.side4video`.

Shapes: s [B, T, P, E]; z [B, T, N, D], whose last P tokens are patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.models.batch_norm import BatchNorm
from aim_fast.models.side import Read, SideNetwork
from aim_kernels.layer_norm import layer_norm
from aim_kernels.precision import compute_dtype
from aim_kernels.spatial_attention import spatial_attention
from aim_kernels.temporal_convolution import temporal_convolution


class Network(SideNetwork):
    """``width`` channels beside every block of ``model``'s trunk."""

    def __init__(self, model: Any, width: int) -> None:
        clips = model.records[-1]
        super().__init__(clips.backend, clips.memory)
        if width % 64:
            raise ValueError(f"side_width {width} is no multiple of 64, the channels of a head")
        self.feature_dim = width
        p = model.patch_size
        self.side_conv1 = nn.Conv3d(3, width, (3, p, p), stride=(1, p, p), padding=(1, 0, 0))
        self.side_pre_bn3d, self.side_post_bn = BatchNorm(width), BatchNorm(width)
        self.transformer = _Layers(model.depth, (model.img_size // p) ** 2, model.embed_dim, width)

    def reset_parameters(self) -> None:
        self.side_conv1.reset_parameters()
        self.side_pre_bn3d.reset_parameters()
        self.side_post_bn.reset_parameters()
        self.transformer.reset_parameters()

    def forward(self, model: Any, tokens: Tensor, clips: Tensor, stored: Sequence[Read] = ()) -> Tensor:
        dtype = self.side_conv1.weight.dtype
        pixels = model.normalize(clips, dtype) if clips.dtype == torch.uint8 else clips.to(dtype)
        s = self.side_pre_bn3d(_patches_of_three(pixels, self.side_conv1))
        layers = self.transformer
        position = layers.side_spatial_position_embeddings
        parts: Any = (model.row, layers.side_lns, layers.side_linears, layers.side_transformer)
        for number, (block, norm, linear, layer) in enumerate(zip(*parts, strict=True)):
            (tokens,) = stored[number] if stored else self.read(block, tokens)
            d = _narrowed(tokens, norm, linear)  # [B, T, N, E]
            c = d[:, :, 0] if block.prefix else d.mean(2)
            s = (s + d[:, :, block.prefix :]) / 2
            if self.memory == "lean":
                s = self.again(layer, s, c, position, self.backend)
            else:
                s = self.again(layer.convolved, s, self.backend)
                s = self.again(layer.attended, s, c, position, self.backend)
                s = self.again(layer.expanded, s)
        return self.side_post_bn(s).mean((1, 2))[:, None]


def _patches_of_three(pixels: Tensor, convolution: nn.Conv3d) -> Tensor:
    """The convolution of [B, 3, T, H, W] as one product a frame for all of its three taps: [B, T, P, E]."""
    b, channels, t, height, _ = pixels.shape
    width, _, _, p, _ = convolution.weight.shape
    g = height // p
    patches = pixels.view(b, channels, t, g, p, g, p).permute(0, 2, 3, 5, 1, 4, 6).reshape(b, t, g * g, -1)
    before, here, after = F.linear(patches, convolution.weight.permute(2, 0, 1, 3, 4).flatten(0, 1).flatten(1)).split(
        width, -1
    )
    out = here + convolution.bias
    out[:, 1:] += before[:, :-1]
    out[:, :-1] += after[:, 1:]
    return out


def _narrowed(tokens: Tensor, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """``linear(norm(tokens))``, the norm's factors folded into the product: what is kept is without them."""
    one, zero = torch.ones_like(norm.weight).detach(), torch.zeros_like(norm.bias).detach()
    normal = layer_norm(tokens, one, zero, norm.eps, compute_dtype(tokens, linear.weight))
    return F.linear(normal, linear.weight * norm.weight, linear.bias + linear.weight @ norm.bias)


class _Layers(nn.Module):
    def __init__(self, depth: int, patches: int, dim: int, width: int) -> None:
        super().__init__()
        self.side_spatial_position_embeddings = nn.Parameter(torch.empty(patches, width))
        self.side_lns = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.side_linears = nn.ModuleList(nn.Linear(dim, width) for _ in range(depth))
        self.side_transformer = nn.ModuleList(_Layer(width) for _ in range(depth))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.side_spatial_position_embeddings, std=0.01)
        for module in (*self.side_lns, *self.side_linears):
            module.reset_parameters()
        for layer in self.side_transformer:
            layer.reset_parameters(len(self.side_transformer))  # type: ignore[operator]


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn_1, self.bn_2 = BatchNorm(width), BatchNorm(width)
        depthwise = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0), groups=width)
        self.conv = nn.Sequential(nn.Conv3d(width, width, 1), depthwise, nn.Conv3d(width, width, 1))
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def reset_parameters(self, depth: int) -> None:
        attention, mlp, width = self.attn, self.mlp, self.attn.embed_dim
        for module in (self.bn_1, self.bn_2, self.ln_1, *self.conv, mlp["fc1"], mlp["fc2"]):
            module.reset_parameters()
        attention._reset_parameters()
        nn.init.normal_(attention.in_proj_weight, std=width**-0.5)
        for residual in (attention.out_proj, mlp["fc2"]):
            nn.init.normal_(residual.weight, std=(2 * width * depth) ** -0.5)  # type: ignore[arg-type]
        nn.init.normal_(mlp["fc1"].weight, std=(2 * width) ** -0.5)  # type: ignore[arg-type]

    def forward(self, s: Tensor, c: Tensor, position: Tensor, backend: str) -> Tensor:
        return self.expanded(self.attended(self.convolved(s, backend), c, position, backend))

    def convolved(self, s: Tensor, backend: str) -> Tensor:
        first, over_time, last = self.conv
        u = F.linear(self.bn_1(s), first.weight.flatten(1), first.bias)  # type: ignore[operator, arg-type]
        if backend == "reference":
            v = over_time(u.permute(0, 3, 1, 2)[..., None])[..., 0].permute(0, 2, 3, 1)
        else:
            v = temporal_convolution(u, over_time.weight.flatten(1).t(), over_time.bias)  # type: ignore[operator, arg-type]
        return s + F.linear(v, last.weight.flatten(1), last.bias)  # type: ignore[operator, arg-type]

    def attended(self, s: Tensor, c: Tensor, position: Tensor, backend: str) -> Tensor:
        half, weights = c.shape[-1] // 2, self.attn
        moved = torch.cat([F.pad(c[:, 1:, :half], (0, 0, 0, 1)), F.pad(c[:, :-1, half:], (0, 0, 1, 0))], -1)
        tokens = self.ln_1(torch.cat([moved[:, :, None], s + position], 2))  # [B, T, 1 + P, E]
        if backend == "reference":
            parts = zip(weights.in_proj_weight.chunk(3), weights.in_proj_bias.chunk(3))
            read = (tokens[:, :, 1:], tokens, tokens)
            q, k, v = (
                F.linear(x, *part).unflatten(-1, (weights.num_heads, -1)).transpose(2, 3)
                for x, part in zip(read, parts)
            )
            found = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(3)
        else:  # the shifted token's own query comes for a 1/P of the work
            qkv = F.linear(tokens, weights.in_proj_weight, weights.in_proj_bias)
            found = spatial_attention(qkv, weights.num_heads)[:, :, 1:]
        return s + F.linear(found, weights.out_proj.weight, weights.out_proj.bias)

    def expanded(self, s: Tensor) -> Tensor:
        return s + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.bn_2(s))))
