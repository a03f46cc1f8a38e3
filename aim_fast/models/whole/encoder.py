"""A Transformer over sequences of tokens, as ViViT, MTV and TokenLearner are made of.

Shapes: B clips, S sequences a clip, N tokens, D width.

    [B, S, N, D] -> class token in front, where there is one -> + pos_embed [N (+ 1), D] -> blocks -> norm

Blocks have the tanh form of GELU, norms an epsilon of 1e-6, products biases, as in the authors' JAX code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aim_fast.models.whole.trained_block import TrainedBlock

EPS = 1e-6


class Encoder(nn.Module):
    """``rates``: droppath's, one a block; ``running``: ``backend`` and ``memory`` of the blocks.

    With ``class_token`` it gives the class token alone, ``[B, S, D]``, else all tokens, ``[B, S, N, D]``.
    """

    blocks: Sequence[TrainedBlock]

    def __init__(
        self, tokens: int, dim: int, heads: int, rates: Sequence[float], hidden: int, class_token: bool, **running: Any
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, tokens + class_token, dim))
        self.blocks = trained_blocks(dim, heads, rates, hidden, **running)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def reset_parameters(self) -> None:
        """Class token zero, positions normal with std 0.02, blocks as a ViT's."""
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)
        nn.init.normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            block.reset_parameters()
        self.norm.reset_parameters()

    def embed(self, x: Tensor) -> Tensor:
        """Tokens as the first block takes them."""
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.to(x.dtype).expand(*x.shape[:2], -1, -1), x], dim=2)
        return x + self.pos_embed

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        read = self.cls_token is not None
        for block in self.blocks:
            x = block(x, cls_only=read and block is self.blocks[-1])
        return self.norm(x[:, :, 0] if read else x)


def trained_blocks(dim: int, heads: int, rates: Sequence[float], hidden: int, **running: Any) -> nn.ModuleList:
    """One block for each of droppath's ``rates``, its MLP of ``hidden`` units."""
    ratio = hidden / dim
    return nn.ModuleList(
        TrainedBlock(dim, heads, ratio, rate, activation="gelu_tanh", eps=EPS, **running) for rate in rates
    )
