"""A CLIP ViT over clips: the stem and the tail that every model on CLIP's image Transformer shares.

Shapes: B clips, T frames, N = 1 + (img_size / patch_size)² tokens a frame (CLS first), D = embed_dim.

    stem    patches (no bias) -> prepend class_embedding -> + positional_embedding [N, D]
            -> + temporal_embedding [1, T, D] on every token -> ln_pre                       [B, T, N, D]
    blocks  depth × the model's own
    tail    ln_post -> CLS of each frame [B, T, D] -> mean over T -> dropout -> fc_cls -> [B, num_classes]

Parameter names are CLIP's, below ``transformer.resblocks`` for the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.models import clip_weights
from aim_fast.models.video_model import Fit, VideoModel, check_normalisation, check_sizes
from aim_fast.models.weight_files import WeightsFile
from aim_kernels.adaptation import Activation
from aim_kernels.modules import Adapter, BlockBackend
from aim_kernels.patch_embed import patch_embed

# The middle of uint8: pixels minus this are exact in bf16, and small enough that a rounded weight does little harm.
_MIDDLE = 128.0


class CLIPViT(VideoModel):
    """Stem, a row of blocks, and tail. A model gives its blocks, ``freeze``, and whatever else its blocks need.

    Args:
        block: makes one block of the row from its droppath rate and its number; rates grow linearly from 0 at the first
            to ``drop_path`` at the last. Blocks have ``attn.out_proj``, ``mlp.c_proj``, ``activation`` and
            ``reset_parameters``, and map [B, T, N, D] to itself.

    The other arguments are those of :class:`~aim_fast.models.aim_vit_clip.AIMViTCLIP`. Raises ValueError for sizes that
    cannot be, and in ``forward`` for a clip of another layout or size.
    """

    undecayed = frozenset({"class_embedding", "positional_embedding"})
    mlp_ratio: float = 4.0

    @property
    def lowest(self) -> int:
        """Number of the lowest block in or below which something trains; ``depth`` where only the tail does."""
        return 0

    def __init__(
        self,
        block: Callable[[float, int], nn.Module],
        *,
        img_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_frames: int,
        num_classes: int,
        drop_path: float,
        head_dropout: float,
        mean: Sequence[float],
        std: Sequence[float],
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
        self.num_classes = num_classes
        self.drop_path = drop_path
        self.head_dropout = head_dropout
        self.mean, self.std = check_normalisation(mean, std)

        num_tokens = 1 + (img_size // patch_size) ** 2
        self.conv1 = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(embed_dim))
        self.positional_embedding = nn.Parameter(torch.empty(num_tokens, embed_dim))
        self.temporal_embedding = nn.Parameter(torch.empty(1, num_frames, embed_dim))
        self.ln_pre = nn.LayerNorm(embed_dim)
        self.transformer = Transformer(block(drop_path * i / max(depth - 1, 1), i) for i in range(depth))
        self.ln_post = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(head_dropout)
        self.fc_cls = nn.Linear(embed_dim, num_classes)

    def reset_parameters(self) -> None:
        """Initialise everything: the trunk as CLIP does, the head as AIM does, ``temporal_embedding`` to 0."""
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
        if isinstance(self.fc_cls, nn.Linear):
            nn.init.normal_(self.fc_cls.weight, std=0.01)
            nn.init.zeros_(self.fc_cls.bias)

    @property
    def activation(self) -> Activation:
        """Of the image Transformer's MLPs: "quick_gelu" or "gelu"; assigning sets it in every block."""
        return self.transformer.resblocks[0].activation

    @activation.setter
    def activation(self, activation: Activation) -> None:
        for block in self.transformer.resblocks:
            block.activation = activation

    @property
    def backend(self) -> BlockBackend:
        """Of the stem and the blocks: "fused", or "reference" for plain torch and for blocks that have no choice."""
        return getattr(self.transformer.resblocks[0], "backend", "reference")

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        return clip_weights.fit_weights(self, file, source)

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips, or what :meth:`forward_bottom` made of them, to the normalised CLS feature of a frame, [B, T, D]."""
        return self.forward_top(x if list(x.shape[1:]) == self.bottom_shape else self.forward_bottom(x))

    @property
    def bottom_shape(self) -> list[int]:
        """[T, N, D] of what :meth:`forward_bottom` makes of a clip."""
        tokens = 1 if self.lowest == self.depth else len(self.positional_embedding)
        return [self.num_frames, tokens, self.embed_dim]

    def forward_bottom(self, x: Tensor) -> Tensor:
        """Clips to the input of block ``lowest``, [B, T, N, D]; the pooled token alone, N = 1, where no block is left.

        Nothing in it trains where ``lowest`` is above 0, so it keeps nothing for backward and can be cached.
        """
        tokens = self.transformer(self.embed(x), 0, self.lowest)
        return self.pool(tokens)[:, :, None] if self.lowest == self.depth else tokens

    def forward_top(self, tokens: Tensor) -> Tensor:
        """The input of block ``lowest`` to the normalised CLS feature of each frame, ``[B, T, D]``."""
        if self.lowest == self.depth:
            return self.ln_post(tokens[:, :, 0])
        return self.ln_post(self.pool(self.transformer(tokens, self.lowest, self.depth)))

    def pool(self, tokens: Tensor) -> Tensor:
        """The last block's output ``[B, T, N, D]`` to one feature a frame, ``[B, T, D]``: its CLS token."""
        return tokens[:, :, 0]

    def forward_head(self, features: Tensor) -> Tensor:
        """Features ``[B, T, D]`` to logits ``[B, num_classes]``: mean over frames, dropout, classifier."""
        return self.fc_cls(self.dropout(features.mean(1)))

    def embed(self, x: Tensor) -> Tensor:
        """Clips to the block's first input ``[B, T, N, D]``."""
        # on a CPU the fused stem is slower: bench/NOTES.md
        if x.is_cuda and x.dtype == torch.uint8 and self.backend == "fused" and isinstance(self.ln_pre, nn.LayerNorm):
            self.check_clips(x)
            return patch_embed(
                x,
                self.conv1.weight,
                self.class_embedding,
                self.positional_embedding,
                self._stem_embedding[0],
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
        return self.ln_pre(tokens + self._stem_embedding[:, :, None])

    @property
    def _stem_embedding(self) -> Tensor:
        """What the stem adds to every token of a frame, ``[1, T, D]``."""
        return self.temporal_embedding

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

    resblocks: Sequence[Any]

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)  # type: ignore[assignment]

    def forward(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Blocks ``start`` to ``stop`` - 1 of ``x`` [B, T, N, D]."""
        for number in range(start, stop):
            x = self.resblocks[number](x)
        return x
