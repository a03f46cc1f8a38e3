"""What AIM adds to an image Transformer over clips: which blocks adapt, where time enters, and what trains.

Source: Yang et al., AIM: Adapting Image Models for Efficient Video Action Recognition, ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import get_args

import torch
from torch import Tensor

from aim_fast.models.adapter_layers import resolve_layers
from aim_fast.models.choices import TemporalPlace, Tune
from aim_fast.models.frame_model import FrameViT
from aim_fast.models.video_model import check_tune
from aim_kernels.choices import AdapterPlace


class AIMAdaptation(FrameViT):
    """The part of an AIM model that does not depend on its trunk.

    A model sets ``adapters``, ``adapter_layers``, ``temporal_place`` and ``tune`` as
    ``AIMViTCLIP`` describes them; its adapters have "Adapter" in their names.
    """

    adapters: tuple[AdapterPlace, ...]
    adapter_layers: tuple[int, ...]
    temporal_place: TemporalPlace
    tune: Tune

    @staticmethod
    def check_adaptation(
        adapters: Collection[AdapterPlace],
        adapter_layers: str | Sequence[int | str],
        temporal_place: TemporalPlace,
        tune: Tune,
        depth: int,
    ) -> tuple[tuple[AdapterPlace, ...], tuple[int, ...]]:
        """The places and the numbers of the blocks that have them. Raises ValueError for what cannot be."""
        check_tune(tune)
        if temporal_place not in get_args(TemporalPlace):
            raise ValueError(f"temporal_place {temporal_place!r} is none of {', '.join(get_args(TemporalPlace))}")
        places = tuple(adapters)
        layers = resolve_layers(adapter_layers, depth) if places else ()
        if places and not layers:
            raise ValueError("adapter_layers names no block: name some, or give no adapters")
        return places, layers

    def freeze(self) -> None:
        """Set ``requires_grad`` as ``tune`` says (see the class): called at construction."""
        self.requires_grad_(self.tune == "all")
        self.fc_cls.requires_grad_(True)
        if self.adapters:
            self.ln_post.requires_grad_(True)
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(parameter.requires_grad or "Adapter" in name)
        self.temporal_embedding.requires_grad_(bool(self.adapters) and self.temporal_place != "frozen")

    @property
    def lowest(self) -> int:
        if self.tune == "all" or (self.adapters and self.temporal_place == "stem"):
            return 0
        return min(self.adapter_layers, default=self.depth)

    def forward_top(self, tokens: Tensor) -> Tensor:
        if self._moved:
            tokens = tokens + self.temporal_embedding[:, :, None]
        return super().forward_top(tokens)

    @property
    def _moved(self) -> bool:
        """Whether ``temporal_embedding`` is added to the input of a block instead of by the stem."""
        return 0 < self.lowest < self.depth and self.temporal_place == "lowest"

    @property
    def stem_embedding(self) -> Tensor:
        return torch.zeros_like(self.temporal_embedding) if self._moved else self.temporal_embedding
