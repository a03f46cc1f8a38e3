"""CLIP's image tower, frozen: frames to features in the space that it shares with the text tower.

Shapes: F frames, N = 1 + (img_size / patch_size)² tokens (CLS first), D = embed_dim, De = output_dim.

    frames -> the trunk of AIMViTCLIP without adapters -> ln_post of CLS [F, D] -> proj [D, De] -> [F, De]

Parameter names are CLIP's below ``visual.``: ``conv1.weight, class_embedding, positional_embedding, ln_pre.*,
transformer.resblocks.N.*, ln_post.*, proj``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aim_fast.models.trunks.clip_aim import AIMViTCLIP


class CLIPImageTower(AIMViTCLIP):
    """Frames uint8 ``[F, 1, H, W, 3]`` or normalised floating ``[F, 3, 1, H, W]`` to features ``[F, De]``.

    A frame is a clip of one frame to the trunk it derives from, so the trunk's operators serve. CLIP's projection
    stands in place of the classifier, and there is no temporal embedding.
    """

    def __init__(self, *, output_dim: int, **sizes: Any) -> None:
        super().__init__(num_frames=1, num_classes=1, adapters=(), **sizes)
        del self.fc_cls, self.temporal_embedding
        self.register_buffer("temporal_embedding", torch.zeros(1, 1, self.embed_dim), persistent=False)
        self.proj = nn.Parameter(torch.empty(self.embed_dim, output_dim))
        nn.init.normal_(self.proj, std=self.embed_dim**-0.5)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        cls = self.forward_features(x)[:, 0]
        return cls @ self.proj.to(cls.dtype)
