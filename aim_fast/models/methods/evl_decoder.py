"""EVL's decoder, named as published. The mathematics is in :mod:`aim_fast.models.methods.evl`.

Shapes: z, y [B, T, N, D]; the query x [B, 1, D]; h heads of d channels.

Keys and values are never formed. With n = (y − mean)/std, norm3's w and b, and a key's bias that no softmax sees,

    q·(Wk (w∘n + b)) = n·(w ∘ Wkᵀq) + constant,    Σ a Wv (w∘n + b) = Wv (w ∘ Σ a n + b)

so that of T·N·D² products for the keys and as many for the values T·N·h·D are left, and backward reads n in their
place. In float32 at least: a folded query that is rounded costs √(D/d) times what a rounded key does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.models.side import Read, SideNetwork
from aim_kernels.layer_norm import layer_norm
from aim_kernels.precision import compute_dtype
from aim_kernels.relative_values import neighbour_maps, relative_values, relative_values_reference
from aim_kernels.temporal_convolution import temporal_convolution


class Decoder(SideNetwork):
    """``layers`` layers beside the last blocks of ``model``'s trunk; it reads a block's output and its two maps."""

    reads_pixels = False

    def __init__(self, model: Any, layers: int, heads: int | None, dropout: float) -> None:
        clips = model.records[-1]
        super().__init__(clips.backend, clips.memory)
        self.feature_dim = dim = model.embed_dim
        side = model.img_size // model.patch_size
        self.cls_token = nn.Parameter(torch.empty(dim))
        self.temporal_conv = nn.ModuleList(nn.Conv1d(dim, dim, 3, padding=1, groups=dim) for _ in range(layers))
        self.temporal_pos_embed = nn.ParameterList(torch.empty(model.num_frames, dim) for _ in range(layers))
        self.cross_attention = nn.ModuleList(_Tables(side, dim) for _ in range(layers))
        self.decoder_layers = nn.ModuleList(_Layer(dim, heads or model.num_heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def reset_parameters(self) -> None:
        for zero in (self.cls_token, *self.temporal_pos_embed, *self.cross_attention.parameters()):
            nn.init.zeros_(zero)
        for convolution in self.temporal_conv:
            convolution.reset_parameters()  # type: ignore[operator]
        for layer in self.decoder_layers:
            layer.reset_parameters()  # type: ignore[operator]
        self.norm.reset_parameters()

    def read(self, block: Any, tokens: Tensor) -> Read:
        found: list[Tensor] = []
        z = block.expanded(tokens + block.attend(tokens, seen=found.append))
        return (z, *neighbour_maps(found[0], block.num_heads, block.prefix))

    def read_shapes(self, model: Any) -> list[list[int]]:
        patches = (model.img_size // model.patch_size) ** 2
        return [*super().read_shapes(model), *[[model.trunk_frames - 1, patches, patches]] * 2]

    def forward(self, model: Any, tokens: Tensor, clips: Tensor, stored: Sequence[Read] = ()) -> Tensor:
        x = self.cls_token.expand(tokens.shape[0], 1, -1)
        for number, block in enumerate(model.row[model.lowest :]):
            z, before, after = stored[number] if stored else self.read(block, tokens)
            layer: Any = self.decoder_layers[number]
            kept = z if self.backend == "reference" else z.to(compute_dtype(z, layer.attn.q_proj.weight))
            if stored:
                before, after = before.to(kept.dtype), after.to(kept.dtype)
            reading = (kept, before, after, layer.norm1(x), number, block.prefix)
            x = x + (self._read(*reading) if self.memory == "fast" else self.again(self._read, *reading))
            x, tokens = x + layer.mlp(layer.norm2(x)), z
        return self.norm(x)

    def _read(self, z: Tensor, before: Tensor, after: Tensor, query: Tensor, number: int, prefix: int) -> Tensor:
        """What the normed ``query`` finds in z, [B, 1, D]; the maps are those of :func:`neighbour_maps`."""
        parts: Any = (self.temporal_conv, self.cross_attention, self.decoder_layers)
        convolution, tables, layer = (part[number] for part in parts)
        position = self.temporal_pos_embed[number][None, :, None]
        if self.backend == "reference":
            moved = convolution(z.permute(0, 2, 3, 1).flatten(0, 1)).unflatten(0, (z.shape[0], -1)).permute(0, 3, 1, 2)
            y = z + moved + position
            values = [relative_values_reference(maps, w) for maps, w in ((before, tables.w1), (after, tables.w2))]
            crossed = F.pad(values[0], (0, 0, 0, 0, 1, 0)) + F.pad(values[1], (0, 0, 0, 0, 0, 1))
            return layer.attn(query, layer.norm3(y + F.pad(crossed, (0, 0, prefix, 0))).flatten(1, 2))
        kernel = convolution.weight[:, 0].t()  # [3, D]
        y = temporal_convolution(z, torch.stack([kernel[0], kernel[1] + 1, kernel[2]]), convolution.bias)
        y += position.to(y.dtype)
        y[:, 1:, prefix:] += relative_values(before, tables.w1)
        y[:, :-1, prefix:] += relative_values(after, tables.w2)
        return layer.attn.folded(query, y.flatten(1, 2), layer.norm3)


class _Tables(nn.Module):
    """A row for every relative position of two patches: ``w1`` with the frame before, ``w2`` with the one after."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.w1, self.w2 = (nn.Parameter(torch.empty((2 * side - 1) ** 2, dim)) for _ in range(2))


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attn = _Attention(dim, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.mlp = _MLP(dim, 4 * dim, dropout)

    def reset_parameters(self) -> None:
        for linear in (*self.attn.children(), self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_uniform_(linear.weight)  # type: ignore[arg-type]
        for linear in self.attn.children():
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        for bias in (self.mlp.fc1.bias, self.mlp.fc2.bias):
            nn.init.normal_(bias, std=1e-6)
        for norm in (self.norm1, self.norm2, self.norm3):
            norm.reset_parameters()


class _Attention(nn.Module):
    """One query a clip over many keys, separate projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """As published: [B, 1, D] and [B, L, D] to [B, 1, D]."""
        projected = (self.q_proj(query), self.k_proj(tokens), self.v_proj(tokens))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def folded(self, query: Tensor, y: Tensor, norm: nn.LayerNorm) -> Tensor:
        """The same of ``norm(y)``."""
        precise = torch.promote_types(y.dtype, torch.float32)
        n = layer_norm(y, *_plain(norm), norm.eps, precise)
        with torch.autocast(y.device.type, enabled=False):
            query = query.to(precise)
            q = self.q_proj(query).unflatten(-1, (self.heads, -1))[:, 0]  # [B, h, d]
            key, value = (part.weight.unflatten(0, (self.heads, -1)) for part in (self.k_proj, self.v_proj))
            folded = torch.einsum("bhd,hdc->bhc", q, key) * norm.weight * q.shape[-1] ** -0.5
            constant = (q * self.k_proj.bias.unflatten(0, (self.heads, -1))).sum(-1)  # of a key's bias
            shares = (n @ folded.transpose(1, 2) + constant[:, None]).softmax(1)  # [B, L, h]
            read = shares.transpose(1, 2) @ n * norm.weight + norm.bias  # [B, h, D]
            found = torch.einsum("bhc,hdc->bhd", read, value).flatten(1) + self.v_proj.bias
            return self.out_proj(found)[:, None]


def _plain(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return torch.ones_like(norm.weight).detach(), torch.zeros_like(norm.bias).detach()


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        return self.fc2(self.dropout(hidden * torch.sigmoid(1.702 * hidden)))
