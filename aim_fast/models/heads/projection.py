"""CLIP's projection in place of a classifier: one frame's feature to the space that both towers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from aim_fast.models.head import Head
from aim_fast.models.headed import Headed


@dataclass(frozen=True)
class Projection(Head):
    """The first frame's feature ``[B, T, D]`` to ``[B, De]``, De = ``num_classes``, by CLIP's frozen ``proj``."""

    name: ClassVar[str] = "projection"
    own: ClassVar[tuple[str, ...]] = ("proj",)
    trained: ClassVar[bool] = False

    def make(self, model: Headed) -> None:
        model.proj = nn.Parameter(torch.empty(model.feature_dim, self.num_classes))

    def reset(self, model: Headed) -> None:
        nn.init.normal_(model.proj, std=model.feature_dim**-0.5)

    def logits(self, model: Headed, features: Tensor) -> Tensor:
        return features[:, 0] @ model.proj.to(features.dtype)
