"""AIM on a CLIP ViT: a frozen image Transformer with spatial, temporal and joint adapters in every block.

Shapes: B clips, T frames, N = 1 + (img_size / patch_size)² tokens a frame (CLS first), D = embed_dim.

    stem    patches (no bias) -> prepend class_embedding -> + positional_embedding [N, D]
            -> + temporal_embedding [1, T, D] on every token -> ln_pre                       [B, T, N, D]
    blocks  depth × aim_kernels.AIMBlock
    tail    ln_post -> CLS of each frame [B, T, D] -> mean over T -> dropout -> fc_cls -> [B, num_classes]

Parameter names are those of the published checkpoints without ``backbone.`` and ``cls_head.``. Source: Yang et al.,
AIM: Adapting Image Models for Efficient Video Action Recognition, ICLR 2023, and its public implementation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.models import clip_weights
from aim_fast.models.video_model import CLIP_MEAN, CLIP_STD, Fit, VideoModel, check_normalisation, check_sizes
from aim_fast.models.weight_files import WeightsFile
from aim_kernels.adaptation import Activation
from aim_kernels.modules import Adapter, AdapterPlace, AIMBlock, BlockBackend, DropPathMode, Memory
from aim_kernels.patch_embed import patch_embed

# The middle of uint8: pixels minus this are exact in bf16, and small enough that a rounded weight does little harm.
_MIDDLE = 128.0


class AIMViTCLIP(VideoModel):
    """A CLIP ViT adapted to video by AIM: clips in, class logits out.

    Input: uint8 ``[B, T, H, W, 3]`` RGB (normalised inside), or floating ``[B, 3, T, H, W]`` already normalised with
    ``mean`` and ``std``; T = num_frames, H = W = img_size. Output: logits ``[B, num_classes]``.

    What trains is set at construction (``requires_grad``), as published: every adapter, ``temporal_embedding``,
    ``ln_post`` and ``fc_cls``; the rest is frozen. With ``adapters=()`` the model is the frozen space-only rung, a
    linear probe on frame-averaged CLS features: only ``fc_cls`` trains (``temporal_embedding`` stays zero).
    ``model.requires_grad_(True)`` is full fine-tuning.

    Args:
        img_size, patch_size, embed_dim, depth, num_heads: the image Transformer.
        num_frames: frames of a clip, the length of ``temporal_embedding``.
        num_tadapter: 1, or 2 for an adapter before temporal attention too (Something-Something v2).
        adapter_scale: factor of the joint adapter: 0.5 on Kinetics and Diving-48, 1 on Something-Something v2.
        adapter_ratio: hidden units of an adapter per channel.
        drop_path: droppath rate of the last block; rates grow linearly from 0 at the first.
        num_classes: outputs of ``fc_cls``.
        drop_path_mode: "position" (published code), "clip" (paper) or "frame", see ``aim_kernels.DropPath``.
        adapters: which of "spatial", "temporal", "joint" each block has (the ablation rungs).
        activation: of the frozen MLPs, "quick_gelu" (OpenAI's weights) or "gelu".
        head_dropout: dropout before ``fc_cls``.
        mean, std: of the R, G and B channel, on the scale of 0 to 255.
        backend: of the stem and the blocks, "fused" or "reference" (plain torch), see ``aim_kernels.AIMBlock``.
        memory: what the blocks keep for backward, "fast", "balanced" or "lean"; no value changes with it.

    Raises ValueError for sizes that cannot be, and in ``forward`` for a clip of another layout or size.
    """

    arguments = (
        *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_frames", "num_tadapter", "adapter_scale"),
        *("adapter_ratio", "drop_path", "num_classes", "drop_path_mode", "activation", "head_dropout"),
        *("adapters", "mean", "std"),
    )
    undecayed = frozenset({"class_embedding", "positional_embedding"})

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
        drop_path_mode: DropPathMode = "position",
        adapters: Collection[AdapterPlace] = ("spatial", "temporal", "joint"),
        activation: Activation = "quick_gelu",
        head_dropout: float = 0.5,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        backend: BlockBackend = "fused",
        memory: Memory = "fast",
    ) -> None:
        super().__init__()
        check_sizes(img_size=img_size, patch_size=patch_size, embed_dim=embed_dim, depth=depth)
        check_sizes(num_heads=num_heads, num_frames=num_frames, num_classes=num_classes)
        if img_size % patch_size:
            raise ValueError(f"img_size {img_size} is no multiple of patch_size {patch_size}")
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path {drop_path} is not in [0, 1)")
        self.img_size = img_size
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.num_frames = num_frames
        self.num_tadapter = num_tadapter
        self.adapter_scale = adapter_scale
        self.adapter_ratio = adapter_ratio
        self.drop_path = drop_path
        self.num_classes = num_classes
        self.drop_path_mode = drop_path_mode
        self.adapters = tuple(adapters)
        self.head_dropout = head_dropout
        self.mean, self.std = check_normalisation(mean, std)

        num_tokens = 1 + (img_size // patch_size) ** 2
        self.conv1 = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(embed_dim))
        self.positional_embedding = nn.Parameter(torch.empty(num_tokens, embed_dim))
        self.temporal_embedding = nn.Parameter(torch.empty(1, num_frames, embed_dim))
        self.ln_pre = nn.LayerNorm(embed_dim)
        self.transformer = Transformer(
            AIMBlock(
                embed_dim,
                num_heads,
                num_tadapter=num_tadapter,
                adapter_scale=adapter_scale,
                adapter_ratio=adapter_ratio,
                drop_path=drop_path * layer / max(depth - 1, 1),
                drop_path_mode=drop_path_mode,
                adapters=self.adapters,
                activation=activation,
                backend=backend,
                memory=memory,
            )
            for layer in range(depth)
        )
        self.ln_post = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(head_dropout)
        self.fc_cls = nn.Linear(embed_dim, num_classes)
        self.reset_parameters()
        self.freeze()

    def reset_parameters(self) -> None:
        """Initialise everything: the trunk as CLIP does, adapters and head as AIM does, ``temporal_embedding`` to 0."""
        self.conv1.reset_parameters()
        nn.init.normal_(self.class_embedding, std=self.embed_dim**-0.5)
        nn.init.normal_(self.positional_embedding, std=self.embed_dim**-0.5)
        nn.init.zeros_(self.temporal_embedding)
        self.ln_pre.reset_parameters()
        self.ln_post.reset_parameters()
        for block in self.transformer.resblocks:
            block.reset_parameters()
            for adapter in (module for module in block.children() if isinstance(module, Adapter)):
                adapter.reset_parameters()
            for residual in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.normal_(residual.weight, std=(2 * self.embed_dim * self.depth) ** -0.5)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.zeros_(self.fc_cls.bias)

    def freeze(self) -> None:
        """Set ``requires_grad`` as published (see the class): called at construction, undone by ``requires_grad_``."""
        self.requires_grad_(False)
        self.fc_cls.requires_grad_(True)
        if self.adapters:
            self.temporal_embedding.requires_grad_(True)
            self.ln_post.requires_grad_(True)
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(parameter.requires_grad or "Adapter" in name)

    @property
    def activation(self) -> Activation:
        """Of the frozen MLPs: "quick_gelu" or "gelu"; assigning sets it in every block."""
        return self.transformer.resblocks[0].activation

    @activation.setter
    def activation(self, activation: Activation) -> None:
        for block in self.transformer.resblocks:
            block.activation = activation

    @property
    def backend(self) -> BlockBackend:
        """Of the stem and the blocks: "fused", or "reference" for plain torch and for blocks that are not AIM's."""
        first = self.transformer.resblocks[0]
        return first.backend if isinstance(first, AIMBlock) else "reference"

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        return clip_weights.fit_weights(self, file, source)

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips to the normalised CLS feature of each frame, ``[B, T, D]``."""
        tokens = self.transformer(self.embed(x))
        return self.ln_post(tokens[:, :, 0])

    def forward_head(self, features: Tensor) -> Tensor:
        """Features ``[B, T, D]`` to logits ``[B, num_classes]``: mean over frames, dropout, classifier."""
        return self.fc_cls(self.dropout(features.mean(1)))

    def embed(self, x: Tensor) -> Tensor:
        """Clips to the block's first input ``[B, T, N, D]``."""
        if x.is_cuda and x.dtype == torch.uint8 and self.backend == "fused":  # on a CPU it is slower: bench/NOTES.md
            self.check_clips(x)
            return patch_embed(
                x,
                self.conv1.weight,
                self.class_embedding,
                self.positional_embedding,
                self.temporal_embedding[0],
                self.ln_pre.weight,
                self.ln_pre.bias,
                self.mean,
                self.std,
                self.ln_pre.eps,
            )
        patches = self._patch_tokens(x)
        b, t, _, d = patches.shape
        cls = self.class_embedding.to(patches.dtype).expand(b, t, 1, d)
        tokens = torch.cat([cls, patches], dim=2) + self.positional_embedding
        return self.ln_pre(tokens + self.temporal_embedding[:, :, None])

    def _patch_tokens(self, x: Tensor) -> Tensor:
        """Patch embedding ``[B, T, N - 1, D]`` as one product over flattened patches, faster than the convolution.

        For uint8 the normalisation is folded into it: W·((x − mean)/std) = (W/std)·(x − 128) + Σ (W/std)·(128 − mean).
        """
        b, t = self.check_clips(x), self.num_frames
        p, grid, weight = self.patch_size, self.img_size // self.patch_size, self.conv1.weight
        if x.dtype == torch.uint8:
            weight, bias = self._normalising_patch_weights()
            patches = x.reshape(b, t, grid, p, grid, p * 3).transpose(3, 4).to(weight.dtype) - _MIDDLE
            return F.linear(patches.reshape(b, t, grid * grid, p * p * 3), weight.flatten(1), bias)
        patches = x.to(weight.dtype).reshape(b, 3, t, grid, p, grid, p).permute(0, 2, 3, 5, 1, 4, 6)
        return F.linear(patches.reshape(b, t, grid * grid, 3 * p * p), weight.flatten(1))

    def _normalising_patch_weights(self) -> tuple[Tensor, Tensor]:
        """Weight ``[D, p, p, 3]`` and bias ``[D]`` for pixels less ``_MIDDLE``.

        The mean and std stay plain numbers, exact in any dtype; the bias is that of the rounded weight.
        """
        dtype = self.conv1.weight.dtype
        wide = self.conv1.weight.to(torch.promote_types(dtype, torch.float32))
        weight = torch.stack([wide[:, c] / self.std[c] for c in range(3)], dim=-1).to(dtype)
        sums = weight.to(wide.dtype).sum((1, 2))  # [D, 3]
        bias = sum((sums[:, c] * (_MIDDLE - self.mean[c]) for c in range(1, 3)), sums[:, 0] * (_MIDDLE - self.mean[0]))
        return weight, bias.to(dtype)


class Transformer(nn.Module):
    """The blocks in a row, named ``resblocks`` as in CLIP."""

    resblocks: Sequence[AIMBlock]

    def __init__(self, blocks: Iterator[AIMBlock]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x
