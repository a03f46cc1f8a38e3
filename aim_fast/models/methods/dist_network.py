"""DiST's networks, named as published. The mathematics is in :mod:`aim_fast.models.methods.dist`.

Shapes: the stream over time t [B, 2T, P, C]; integrated tokens m [B, T, 1 + P, J]; z [B, T, N, D] of the trunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.models.block import untouched
from aim_fast.models.side import Read, SideNetwork


class Network(SideNetwork):
    """``width`` J, ``temporal`` C, ``pooling`` layers, beside every block of ``model``'s trunk."""

    def __init__(self, model: Any, width: int, temporal: int, pooling: int) -> None:
        clips = model.records[-1]
        super().__init__(clips.backend, clips.memory)
        if width % 64:
            raise ValueError(f"dist_width {width} is no multiple of 64, the channels of a head")
        if model.num_frames % 2:
            raise ValueError(f"num_frames {model.num_frames} is odd: method dist takes frames in pairs")
        depth, p, frames = model.depth, model.patch_size, model.trunk_frames
        self.joint = model.reader.takes_class_names
        self.feature_dim = model.reader.output_dim if self.joint else width
        self.temporal_stem = nn.Conv3d(3, temporal, (5, p, p), stride=(1, p, p), padding=(2, 0, 0))
        self.temporal_nets = nn.ModuleList(_Temporal(temporal) for _ in range(depth))
        self.input_linears = nn.ModuleList(nn.Linear(model.embed_dim, width) for _ in range(depth))
        self.integration2temporal_nets = nn.ModuleList(_Up(width, temporal) for _ in range(depth))
        self.temporal2integration_nets = nn.ModuleList(_Down(temporal, width, frames) for _ in range(depth))
        self.integration_nets = nn.ModuleList(_Integration(width) for _ in range(depth))
        self.adapooling_nets = nn.ModuleList(_Pooling(width, frames) for _ in range(pooling))
        self.aggregated_cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.aggregated_spatial_cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.proj_spatial_cls_token = nn.Linear(model.embed_dim, width)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, self.feature_dim)) if self.joint else None

    def reset_parameters(self) -> None:
        for name, parameter in self.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        if self.proj is not None:
            nn.init.normal_(self.proj, std=len(self.proj) ** -0.5)

    def forward(self, model: Any, tokens: Tensor, clips: Tensor, stored: Sequence[Read] = ()) -> Tensor:
        dtype = self.temporal_stem.weight.dtype
        pixels = model.normalize(clips, dtype) if clips.dtype == torch.uint8 else clips.to(dtype)
        t = self.temporal_stem(pixels).flatten(3).permute(0, 2, 3, 1)  # [B, 2T, P, C]
        r, y = None, tokens
        for number, block in enumerate(model.row):
            (tokens,) = stored[number] if stored else self.read(block, tokens)
            z = _first_and_patches(tokens, block.prefix)
            last = number == len(model.row) - 1
            if self.memory == "lean":
                y, t, r = self.again(self._layer, z, t, r, number, last)
            else:
                y, t, r = self._layer(z, t, r, number, last)
        s = self.aggregated_spatial_cls_token.expand(y.shape[0], y.shape[1], -1)
        u = self.aggregated_cls_token.expand(y.shape[0], -1, -1)
        for layer in self.adapooling_nets:
            s, u = layer(s, u, y, self.backend)
        feature = self.ln_post(u + self.proj_spatial_cls_token(z[:, :, 0].mean(1, keepdim=True)))
        return feature if self.proj is None else feature @ self.proj.to(feature.dtype)

    def _layer(self, z: Tensor, t: Tensor, r: Tensor | None, number: int, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """y, t and r after a block."""
        t = self._from_input(self.temporal_nets[number], t)
        m = self.input_linears[number](z)
        m = m if r is None else m + r
        up: Any = self.integration2temporal_nets[number]
        lifted: Any = up(m) if not last or self.backend == "reference" else None
        m = m + self.temporal2integration_nets[number](t)
        if last:
            m = untouched(m, up)
        else:
            t = t + lifted
        r = self._from_input(self.integration_nets[number], m)
        return r + m, t, r

    def _from_input(self, module: nn.Module, x: Tensor) -> Tensor:
        return module(x) if self.memory == "lean" else self.again(module, x)


def _first_and_patches(z: Tensor, prefix: int) -> Tensor:
    """The class token, or the mean over patches where there is none, and the patches: [B, T, 1 + P, D]."""
    if prefix == 1:
        return z
    patches = z[:, :, prefix:]
    return torch.cat([z[:, :, :1] if prefix else patches.mean(2, keepdim=True), patches], 2)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _over_frames(conv: Any, x: Tensor) -> Tensor:
    """``conv`` [B, C, T, ..], where it is longer than the clip with frames of zeros behind, as it is padded anyway:
    torch's weight gradient of two frames in bfloat16 reads memory that nobody wrote, on a CPU without such products."""
    short = max(conv.kernel_size[0] - x.shape[2], 0)
    return conv(F.pad(x, (0, 0, 0, 0, 0, short)))[:, :, : x.shape[2]] if short else conv(x)


class _Temporal(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        over_time = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))
        over_space = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.temporal_net = nn.ModuleDict({"c_fc1": over_time, "c_fc2": over_space})

    def forward(self, t: Tensor) -> Tensor:
        side = math.isqrt(t.shape[2])
        grid = self.ln(t).unflatten(2, (side, side)).permute(0, 4, 1, 2, 3)
        found = self.temporal_net["c_fc2"](quick_gelu(_over_frames(self.temporal_net["c_fc1"], grid)))
        return quick_gelu(t + found.permute(0, 2, 3, 4, 1).flatten(2, 3))


class _Up(nn.Module):
    def __init__(self, width: int, temporal: int) -> None:
        super().__init__()
        self.linear_fuse = nn.Linear(width, temporal)

    def forward(self, m: Tensor) -> Tensor:
        return self.linear_fuse(m[:, :, 1:]).repeat_interleave(2, 1)


class _Down(nn.Module):
    def __init__(self, temporal: int, width: int, frames: int) -> None:
        super().__init__()
        self.linear_fuse = nn.Conv3d(temporal, width, (2, 1, 1), stride=(2, 1, 1))
        self.cls_token = nn.Parameter(torch.empty(1, 1, frames, width))

    def forward(self, t: Tensor) -> Tensor:
        pairs = t.unflatten(1, (-1, 2)).permute(0, 1, 3, 2, 4).flatten(3)  # [B, T, P, 2C]
        weight = self.linear_fuse.weight[..., 0, 0].transpose(1, 2).flatten(1)  # [J, 2C]
        patches = F.linear(pairs, weight, self.linear_fuse.bias)
        token = self.cls_token[0].transpose(0, 1).to(patches.dtype).expand(t.shape[0], -1, -1, -1)  # [B, T, 1, J]
        return torch.cat([token, patches], 2)


class _Integration(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln, self.ln_temporal = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.ModuleDict({"c_fc": nn.Linear(width, width), "c_proj": nn.Linear(width, width)})
        hidden = width // 4
        over_time = nn.Conv3d(hidden, hidden, (3, 1, 1), padding=(1, 0, 0))
        self.temporal_ffn = nn.ModuleDict(
            {"c_fc1": nn.Conv3d(width, hidden, 1), "c_fc2": over_time, "c_proj": nn.Conv3d(hidden, width, 1)}
        )

    def forward(self, m: Tensor) -> Tensor:
        within = self.ffn["c_proj"](quick_gelu(self.ffn["c_fc"](self.ln(m))))
        first, over_time, last = (self.temporal_ffn[name] for name in ("c_fc1", "c_fc2", "c_proj"))
        narrow = F.linear(self.ln_temporal(m), first.weight.flatten(1), first.bias)  # type: ignore[operator, arg-type]
        moved = _over_frames(over_time, narrow.permute(0, 3, 1, 2)[..., None])[..., 0].permute(0, 2, 3, 1)
        return within + F.linear(quick_gelu(moved), last.weight.flatten(1), last.bias)  # type: ignore[operator, arg-type]


class _Pooling(nn.Module):
    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.spatial_transformer, self.temporal_transformer = _Reader(width), _Reader(width)
        self.ln_out_spat_cls_token, self.ln_out_temp_cls_token = nn.LayerNorm(width), nn.LayerNorm(width)
        self.output_map_spatial_cls_token, self.output_map_cls_token = _mlp(width), _mlp(width)
        self.positional_embedding = nn.Parameter(torch.empty(1, frames, width))

    def forward(self, s: Tensor, u: Tensor, y: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        read = self.spatial_transformer(s.flatten(0, 1)[:, None], y.flatten(0, 1), backend)  # a query a frame
        s = s + read.view(s.shape)
        s = s + _mapped(self.ln_out_spat_cls_token(s), self.output_map_spatial_cls_token)
        u = u + self.temporal_transformer(u, s + self.positional_embedding, backend)
        return s, u + _mapped(self.ln_out_temp_cls_token(u), self.output_map_cls_token)


class _Reader(nn.Module):
    """Cross attention whose one norm is of queries and of what they read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 64)

    def forward(self, query: Tensor, tokens: Tensor, backend: str) -> Tensor:
        """[B, 1, J] and [B, L, J] to [B, 1, J]; "reference" projects queries of all tokens, which nothing reads."""
        weights, normal = self.attn, self.ln_1(tokens)
        asking = self.ln_1(query) if backend == "fused" else torch.cat([self.ln_1(query), normal], 1)
        parts = zip(weights.in_proj_weight.chunk(3), weights.in_proj_bias.chunk(3))
        q, k, v = (
            F.linear(x, *part).unflatten(-1, (weights.num_heads, -1)).transpose(1, 2)
            for x, part in zip((asking, normal, normal), parts)
        )
        found = F.scaled_dot_product_attention(q[:, :, :1], k, v).transpose(1, 2).flatten(2)
        return F.linear(found, weights.out_proj.weight, weights.out_proj.bias)


def _mlp(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})


def _mapped(x: Tensor, mlp: nn.ModuleDict) -> Tensor:
    return mlp["c_proj"](quick_gelu(mlp["c_fc"](x)))
