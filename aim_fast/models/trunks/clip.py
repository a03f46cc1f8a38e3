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
from torch import Tensor, nn

from aim_fast.models.frame_model import FrameViT
from aim_fast.models.weights import clip as clip_weights
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_kernels.modules import Adapter
from aim_kernels.patch_embed import patch_embed


class CLIPViT(FrameViT):
    """Stem, a row of blocks, and tail. A model gives its blocks, ``freeze``, and whatever else its blocks need.

    Args:
        block: makes one block of the row from its droppath rate and its number; rates grow linearly from 0 at the first
            to ``drop_path`` at the last. Blocks have ``attn.out_proj``, ``mlp.c_proj``, ``activation`` and
            ``reset_parameters``, and map [B, T, N, D] to itself.

    The other arguments are those of ``AIMViTCLIP``. Raises ValueError for sizes that
    cannot be, and in ``forward`` for a clip of another layout or size.
    """

    undecayed = frozenset({"class_embedding", "positional_embedding"})
    mlp_ratio: float = 4.0

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
    def row(self) -> Sequence[Any]:
        return self.transformer.resblocks

    @property
    def projection(self) -> nn.Conv2d:
        return self.conv1

    @property
    def num_tokens(self) -> int:
        return len(self.positional_embedding)

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        return clip_weights.fit_weights(self, file, source)

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
                self.stem_embedding[0],
                self.ln_pre.weight,
                self.ln_pre.bias,
                self.mean,
                self.std,
                self.ln_pre.eps,
            )
        patches = self.patch_tokens(x)
        b, t, _, d = patches.shape
        cls = self.class_embedding.to(patches.dtype).expand(b, t, 1, d)
        tokens = torch.cat([cls, patches], dim=2) + self.positional_embedding
        return self.ln_pre(tokens + self.stem_embedding[:, :, None])


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
