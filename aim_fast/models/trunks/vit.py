"""AIM on a plain ViT with timm's names: ImageNet, DINOv2, MAE and other weights under the same adapters as on CLIP.

Shapes: B clips, T frames, N tokens a frame (class token and registers first, where there are any), D = embed_dim.

    stem    patches (with bias) -> prepend cls_token, reg_token -> + pos_embed -> + temporal_embedding [1, T, D] on
            every token -> norm_pre, where the trunk has one                                          [B, T, N, D]
    blocks  depth × aim_kernels.AIMViTBlock
    tail    class token, or mean over patches -> ln_post [B, T, D] -> mean over T -> dropout -> fc_cls

Parameter names are timm's for the trunk, but ``ln_post`` for its last norm, and the published ones for the rest.
Source: Yang et al., AIM, ICLR 2023, and its public implementation (``vit_imagenet``); Dosovitskiy et al., ICLR 2021;
timm's ``vision_transformer`` for what its plain ViTs have beyond that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from aim_fast.models.aim_adaptation import AIMAdaptation
from aim_fast.models.choices import TemporalPlace, Tune
from aim_fast.models.pixels import CLIP_MEAN, CLIP_STD
from aim_fast.models.weights import vit as vit_weights
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_kernels.choices import Activation, AdapterPlace, BlockBackend, DropPathMode, Memory
from aim_kernels.modules import Adapter
from aim_kernels.vit_block import AIMViTBlock

Pool = Literal["token", "avg"]


class AIMViTImageNet(AIMAdaptation):
    """A plain ViT adapted to video by AIM: clips in, class logits out, as
    :class:`~aim_fast.models.video_model.VideoModel` says.

    What trains, and the arguments about adaptation, are those of ``AIMViTCLIP``;
    ``drop_path_mode`` is "frame" as published for this trunk. Those about the trunk are named as in timm:

    Args:
        class_token, reg_tokens: whether there is a class token, and how many registers follow it.
        no_embed_class: whether ``pos_embed`` is for patches alone.
        pre_norm: whether a norm ends the stem, whose patch embedding then has no bias.
        global_pool: a frame's feature: "token", the class token, or "avg", the mean over its patches.
        fc_norm: whether the last norm stands after the mean over patches; None for where timm puts it: after a mean.
        init_values: what LayerScale starts at, None for no LayerScale.
        qk_norm, qkv_bias, proj_bias: see :class:`aim_kernels.AIMViTBlock`.
        eps: of all norms.

    Raises ValueError for sizes that cannot be, and in ``forward`` for a clip of another layout or size.
    """

    arguments = (
        *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_frames", "num_tadapter"),
        *("adapter_scale", "adapter_ratio", "drop_path", "num_classes", "drop_path_mode", "activation"),
        *("head_dropout", "adapters", "adapter_layers", "temporal_place", "tune", "mean", "std"),
        *("class_token", "reg_tokens", "no_embed_class", "pre_norm", "global_pool", "fc_norm", "init_values"),
        *("qk_norm", "qkv_bias", "proj_bias", "eps"),
    )
    undecayed = frozenset({"cls_token", "reg_token", "pos_embed"})

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_frames: int = 8,
        num_tadapter: int = 1,
        adapter_scale: float = 0.5,
        adapter_ratio: float = 0.25,
        drop_path: float = 0.2,
        num_classes: int = 400,
        *,
        mlp_ratio: float = 4.0,
        class_token: bool = True,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        pre_norm: bool = False,
        global_pool: Pool = "token",
        fc_norm: bool | None = None,
        init_values: float | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        eps: float = 1e-6,
        drop_path_mode: DropPathMode = "frame",
        adapters: Collection[AdapterPlace] = ("spatial", "temporal", "joint"),
        adapter_layers: str | Sequence[int | str] = "all",
        temporal_place: TemporalPlace = "lowest",
        tune: Tune = "adapters",
        activation: Activation = "gelu",
        head_dropout: float = 0.5,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        backend: BlockBackend = "fused",
        memory: Memory = "fast",
    ) -> None:
        places, layers = self.check_adaptation(adapters, adapter_layers, temporal_place, tune, depth)
        if global_pool not in get_args(Pool):
            raise ValueError(f"global_pool {global_pool!r} is none of {', '.join(get_args(Pool))}")
        if global_pool == "token" and not class_token:
            raise ValueError("global_pool 'token' needs the class token: take global_pool 'avg'")
        if not isinstance(reg_tokens, int) or reg_tokens < 0:
            raise ValueError(f"reg_tokens must be a whole number of at least 0, not {reg_tokens!r}")
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_frames=num_frames,
            num_classes=num_classes,
            drop_path=drop_path,
            head_dropout=head_dropout,
            mean=mean,
            std=std,
        )
        self.mlp_ratio = mlp_ratio
        self.class_token, self.reg_tokens, self.no_embed_class = class_token, reg_tokens, no_embed_class
        self.pre_norm, self.global_pool = pre_norm, global_pool
        self.fc_norm = global_pool == "avg" if fc_norm is None else fc_norm
        self.init_values, self.qk_norm, self.qkv_bias, self.proj_bias = init_values, qk_norm, qkv_bias, proj_bias
        self.eps = eps
        self.num_tadapter = num_tadapter
        self.adapter_scale = adapter_scale
        self.adapter_ratio = adapter_ratio
        self.drop_path_mode = drop_path_mode
        self.adapters = places
        self.adapter_layers = layers
        self.temporal_place = temporal_place
        self.tune = tune

        self.patch_embed = _PatchEmbed(patch_size, embed_dim, bias=not pre_norm)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, reg_tokens, embed_dim)) if reg_tokens else None
        embedded = (img_size // patch_size) ** 2 + (0 if no_embed_class else self.num_prefix_tokens)
        self.pos_embed = nn.Parameter(torch.empty(1, embedded, embed_dim))
        self.temporal_embedding = nn.Parameter(torch.empty(1, num_frames, embed_dim))
        self.norm_pre = nn.LayerNorm(embed_dim, eps=eps) if pre_norm else None
        self.blocks = nn.ModuleList(
            AIMViTBlock(
                embed_dim,
                num_heads,
                mlp_ratio,
                init_values=init_values,
                qk_norm=qk_norm,
                qkv_bias=qkv_bias,
                proj_bias=proj_bias,
                eps=eps,
                num_tadapter=num_tadapter,
                adapter_scale=adapter_scale,
                adapter_ratio=adapter_ratio,
                drop_path=drop_path * number / max(depth - 1, 1),
                drop_path_mode=drop_path_mode,
                adapters=places if number in layers else (),
                activation=activation,
                backend=backend,
                memory=memory,
            )
            for number in range(depth)
        )
        self.ln_post = nn.LayerNorm(embed_dim, eps=eps)
        self.dropout = nn.Dropout(head_dropout)
        self.fc_cls = nn.Linear(embed_dim, num_classes)
        self.reset_parameters()
        self.freeze()

    def reset_parameters(self) -> None:
        """Initialise everything: the trunk as timm does, adapters and head as AIM does, ``temporal_embedding`` to 0."""
        if self.pos_embed.is_meta:
            return
        self.patch_embed.proj.reset_parameters()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        nn.init.zeros_(self.temporal_embedding)
        for norm in (self.norm_pre, self.ln_post):
            if norm is not None:
                norm.reset_parameters()
        for block in self.row:
            block.reset_parameters()
            for adapter in (module for module in block.children() if isinstance(module, Adapter)):
                adapter.reset_parameters()
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.zeros_(self.fc_cls.bias)

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
        adapted = any("_Adapter." in name for name in tensors)
        return vit_weights.infer_arguments(tensors, where) if adapted and vit_weights.is_vit(tensors) else None

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() & {name for name, _ in self.named_parameters()}

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
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


class _PatchEmbed(nn.Module):
    """The patch convolution under timm's name."""

    def __init__(self, patch_size: int, embed_dim: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size, bias=bias)
