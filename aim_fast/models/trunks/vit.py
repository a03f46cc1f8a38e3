"""A plain ViT over clips, under timm's names: ImageNet, DINOv2, MAE and other weights.

Shapes: B clips, T frames, N tokens a frame (class token and registers first, where there are any), D = embed_dim.

    stem    patches (with bias) -> prepend cls_token, reg_token -> + pos_embed -> + temporal_embedding [1, T, D] on
            every token -> norm_pre, where the trunk has one                                          [B, T, N, D]
    blocks  depth × aim_kernels.AIMViTBlock
    tail    class token, or mean over patches -> ln_post [B, T, D]

Parameter names are timm's for the trunk, but ``ln_post`` for its last norm, and the published ones for the rest.
Source: Yang et al., AIM, ICLR 2023, and its public implementation (``vit_imagenet``); Dosovitskiy et al., ICLR 2021;
timm's ``vision_transformer`` for what its plain ViTs have beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aim_fast.models.block import FrozenBlock
from aim_fast.models.choices import Pool
from aim_fast.models.frame_model import FrameModel
from aim_fast.models.trunk import PlainViT
from aim_fast.models.weights import vit as vit_weights
from aim_fast.models.weights.adaptation import adapted_by
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_kernels.vit_block import AIMViTBlock


class ImageNetViT(FrameModel):
    """A plain ViT under any method and head."""

    trunk_record = PlainViT
    method_defaults = {"drop_path_mode": "frame"}  # noqa: RUF012 - as published for this trunk
    undecayed = frozenset({"cls_token", "reg_token", "pos_embed"})
    class_token: bool
    reg_tokens: int
    no_embed_class: bool
    global_pool: Pool
    fc_norm: bool
    eps: float

    def make_trunk(self) -> None:
        record = self.records[0]
        assert isinstance(record, PlainViT)
        embed_dim, eps = self.embed_dim, self.eps
        self.patch_embed = _PatchEmbed(self.patch_size, embed_dim, bias=not record.pre_norm)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if self.class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, self.reg_tokens, embed_dim)) if self.reg_tokens else None
        embedded = (self.img_size // self.patch_size) ** 2 + (0 if self.no_embed_class else self.num_prefix_tokens)
        self.pos_embed = nn.Parameter(torch.empty(1, embedded, embed_dim))
        self.norm_pre = nn.LayerNorm(embed_dim, eps=eps) if record.pre_norm else None
        self.blocks = nn.ModuleList(self._block(record, number) for number in range(self.depth))
        self.ln_post = nn.LayerNorm(embed_dim, eps=eps)

    def _block(self, record: PlainViT, number: int) -> nn.Module:
        block = _Block(
            self.embed_dim,
            self.num_heads,
            self.mlp_ratio,
            init_values=record.init_values,
            qk_norm=record.qk_norm,
            qkv_bias=record.qkv_bias,
            proj_bias=record.proj_bias,
            eps=record.eps,
            activation=record.activation,
            **self.block_arguments(number),
        )
        return self.adapt(block, number)

    def reset_trunk(self) -> None:
        """As timm does."""
        self.patch_embed.proj.reset_parameters()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        for norm in (self.norm_pre, self.ln_post):
            if norm is not None:
                norm.reset_parameters()
        for block in self.row:
            block.reset_parameters()
            self.reset_added(block)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens of a frame that stand before its patches."""
        return int(self.class_token) + self.reg_tokens

    @property
    def row(self) -> Sequence[Any]:
        return self.blocks  # type: ignore[return-value]

    @property
    def projection(self) -> nn.Conv2d:
        return self.patch_embed.proj

    @property
    def num_tokens(self) -> int:
        return self.num_prefix_tokens + (self.img_size // self.patch_size) ** 2

    @classmethod
    def infer_arguments(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        method = adapted_by(tensors)
        if method is None or not vit_weights.is_vit(tensors):
            return None
        return vit_weights.infer_arguments(tensors, where) | ({} if method == "aim" else {"method": method})

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() & {name for name, _ in self.named_parameters()}

    def fit_trunk(self, file: WeightsFile, source: str) -> Fit:
        return vit_weights.fit_weights(self, file, source)

    def embed(self, x: Tensor) -> Tensor:
        patches = self.patch_tokens(x)
        b, t, _, d = patches.shape
        if self.no_embed_class:
            patches = patches + self.pos_embed
        prefix = [token.to(patches.dtype) for token in (self.cls_token, self.reg_token) if token is not None]
        tokens = torch.cat([*(token.expand(b, t, -1, d) for token in prefix), patches], dim=2)
        if not self.no_embed_class:
            tokens = tokens + self.pos_embed
        tokens = tokens + self.stem_embedding[:, :, None]
        return tokens if self.norm_pre is None else self.norm_pre(tokens)

    @property
    def pools_cls(self) -> bool:
        return self.global_pool == "token"

    def pool(self, tokens: Tensor) -> Tensor:
        """The last block's output ``[B, T, N, D]`` to one feature a frame, ``[B, T, D]``."""
        if self.global_pool == "token":
            return tokens[:, :, 0]
        patches = tokens[:, :, self.num_prefix_tokens :]
        return patches.mean(2) if self.fc_norm else self.ln_post(patches).mean(2)

    def finish(self, pooled: Tensor) -> Tensor:
        return pooled if self.global_pool == "avg" and not self.fc_norm else self.ln_post(pooled)


class _Block(FrozenBlock, AIMViTBlock):
    """A block in timm's names, which runs as the method says."""

    @property
    def plain_attention(self) -> bool:  # type: ignore[override]
        return self.attn.q_norm is None

    def _turned(self, qkv: Tensor, over_space: bool) -> Tensor:
        return qkv if self.attn.q_norm is None else self.attn.normalise(qkv)


class _PatchEmbed(nn.Module):
    """The patch convolution under timm's name."""

    def __init__(self, patch_size: int, embed_dim: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size, bias=bias)
