"""An image Transformer over clips, frame by frame: what its models share whatever their weights' names.

Shapes: B clips, T frames, N tokens a frame, D = embed_dim.

    stem    clips -> patches, tokens that stand before them, embeddings                     [B, T, N, D]
    blocks  depth × the model's own, in a row
    tail    pool -> finish (a norm) [B, T, D] -> mean over T -> dropout -> fc_cls -> [B, num_classes]
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.errors import UsageError
from aim_fast.models.video_model import VideoModel, check_normalisation, check_sizes
from aim_kernels.choices import Activation, BlockBackend
from aim_kernels.modules import AIMBlock

# The middle of uint8: pixels minus this are exact in bf16, and small enough that a rounded weight does little harm.
_MIDDLE = 128.0


class FrameViT(VideoModel):
    """Patches, a row of blocks, a tail. A model gives ``embed``, ``row``, ``projection`` and ``num_tokens``, and makes
    ``temporal_embedding`` [1, T, D], ``ln_post``, ``dropout`` and ``fc_cls``.

    Raises ValueError for sizes that cannot be, and in ``forward`` for a clip of another layout or size.
    """

    mlp_ratio: float = 4.0
    temporal_embedding: Tensor
    ln_post: nn.LayerNorm
    dropout: nn.Dropout
    fc_cls: nn.Linear

    def __init__(
        self,
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

    @property
    @abstractmethod
    def row(self) -> Sequence[Any]:
        """The blocks, each [B, T, N, D] to itself, with ``activation``."""

    @property
    @abstractmethod
    def projection(self) -> nn.Conv2d:
        """The patch embedding."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """N."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Clips to the first block's input ``[B, T, N, D]``."""

    @property
    def lowest(self) -> int:
        """Number of the lowest block in or below which something trains; ``depth`` where only the tail does."""
        return 0

    @property
    def stem_embedding(self) -> Tensor:
        """What the stem adds to every token of a frame, ``[1, T, D]``."""
        return self.temporal_embedding

    @property
    def activation(self) -> Activation:
        """Of the image Transformer's MLPs: "quick_gelu" or "gelu"; assigning sets it in every block."""
        return self.row[0].activation

    @activation.setter
    def activation(self, activation: Activation) -> None:
        for block in self.row:
            block.activation = activation

    @property
    def backend(self) -> BlockBackend:
        """Of the stem and the blocks: "fused", or "reference" for plain torch and for blocks that have no choice."""
        return getattr(self.row[0], "backend", "reference")

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips, or what :meth:`forward_bottom` made of them, to the normalised feature of a frame, [B, T, D]."""
        if list(x.shape[1:]) == self.bottom_shape:  # stored, perhaps in half precision
            return self.forward_top(x.to(self.ln_post.weight.dtype))
        return self.forward_top(self.forward_bottom(x))

    @property
    def bottom_shape(self) -> list[int]:
        """[T, N, D] of what :meth:`forward_bottom` makes of a clip."""
        tokens = 1 if self.lowest == self.depth else self.num_tokens
        return [self.num_frames, tokens, self.embed_dim]

    def forward_bottom(self, x: Tensor) -> Tensor:
        """Clips to the input of block ``lowest``, [B, T, N, D]; the pooled token alone, N = 1, where no block is left.

        Nothing in it trains where ``lowest`` is above 0, so it keeps nothing for backward and can be cached.
        """
        tokens = self.run(self.embed(x), 0, self.lowest)
        return self.pool(tokens)[:, :, None] if self.lowest == self.depth else tokens

    def frozen_features(self, x: Tensor) -> Tensor:
        """:meth:`forward_bottom`, where nothing in it trains; else UsageError."""
        if self.lowest == 0:
            raise UsageError(
                "nothing below the first trained block can be stored: use --adapters none, or --adapter-layers top or "
                "a list without block 0, and not --temporal-place stem"
            )
        return self.forward_bottom(x)

    @property
    def frozen_part(self) -> str:  # type: ignore[override]
        """What :meth:`frozen_features` are."""
        return f"input of block {self.lowest} of {self.depth}"

    def forward_top(self, tokens: Tensor) -> Tensor:
        """The input of block ``lowest`` to the normalised feature of each frame, ``[B, T, D]``."""
        if self.lowest == self.depth:
            return self.finish(tokens[:, :, 0])
        return self.finish(self.pool(self.run(tokens, self.lowest, self.depth)))

    def pool(self, tokens: Tensor) -> Tensor:
        """The last block's output ``[B, T, N, D]`` to one feature a frame, ``[B, T, D]``: its CLS token."""
        return tokens[:, :, 0]

    def finish(self, pooled: Tensor) -> Tensor:
        """The feature of each frame, normalised: ``[B, T, D]`` to itself."""
        return self.ln_post(pooled)

    @property
    def pools_cls(self) -> bool:
        """Whether :meth:`pool` reads the CLS token, the first of each frame, and nothing else."""
        return True

    def run(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Blocks ``start`` to ``stop`` - 1 on ``tokens`` [B, T, N, D].

        Of the last block only [B, T, 1, D] where no more of it is read.
        """
        for number in range(start, stop):
            block, last = self.row[number], number == self.depth - 1
            reads_cls = last and self.pools_cls and isinstance(block, AIMBlock)
            tokens = block(tokens, cls_only=True) if reads_cls else block(tokens)
        return tokens

    def forward_head(self, features: Tensor) -> Tensor:
        """Features ``[B, T, D]`` to logits ``[B, num_classes]``: mean over frames, dropout, classifier."""
        return self.fc_cls(self.dropout(features.mean(1)))

    def patch_tokens(self, x: Tensor) -> Tensor:
        """Patch embedding ``[B, T, (H/p)(W/p), D]`` as one product over flattened patches, faster than the convolution.

        For uint8 the normalisation is folded into it: W·((x − mean)/std) = (W/std)·(x − 128) + Σ (W/std)·(128 − mean).
        """
        b, t = self.check_clips(x), self.num_frames
        p, grid, weight = self.patch_size, self.img_size // self.patch_size, self.projection.weight
        bias = self.projection.bias
        if x.dtype == torch.uint8:
            weight, bias = self._normalising_patch_weights()
            patches = x.reshape(b, t, grid, p, grid, p * 3).transpose(3, 4).to(weight.dtype) - _MIDDLE
            return F.linear(patches.reshape(b, t, grid * grid, p * p * 3), weight.flatten(1), bias)
        patches = x.to(weight.dtype).reshape(b, 3, t, grid, p, grid, p).permute(0, 2, 3, 5, 1, 4, 6)
        return F.linear(patches.reshape(b, t, grid * grid, 3 * p * p), weight.flatten(1), bias)

    def _normalising_patch_weights(self) -> tuple[Tensor, Tensor]:
        """Weight ``[D, p, p, 3]`` and bias ``[D]`` for pixels less ``_MIDDLE``.

        The mean and std stay plain numbers, exact in any dtype; the bias is that of the rounded weight.
        """
        dtype = self.projection.weight.dtype
        wide = self.projection.weight.to(torch.promote_types(dtype, torch.float32))
        weight = torch.stack([wide[:, c] / self.std[c] for c in range(3)], dim=-1).to(dtype)
        sums = weight.to(wide.dtype).sum((1, 2))  # [D, 3]
        bias = sum((sums[:, c] * (_MIDDLE - self.mean[c]) for c in range(1, 3)), sums[:, 0] * (_MIDDLE - self.mean[0]))
        if self.projection.bias is not None:
            bias = bias + self.projection.bias
        return weight, bias.to(dtype)
