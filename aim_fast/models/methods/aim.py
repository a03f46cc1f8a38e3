"""AIM: a frozen image Transformer with spatial, temporal and joint adapters in its blocks.

The mathematics is that of :mod:`aim_kernels.adaptation`. Source: Yang et al., AIM: Adapting Image Models for Efficient
Video Action Recognition, ICLR 2023, and its public implementation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, get_args

from aim_fast.models.choices import TemporalPlace, Tune
from aim_fast.models.method import Method
from aim_fast.models.methods.adapter_layers import resolve_layers
from aim_fast.models.video_model import check_drop_path, check_tune
from aim_kernels.choices import AdapterPlace, DropPathMode


@dataclass(frozen=True)
class AIM(Method):
    """Adapters on a frozen trunk. What trains, as published: every adapter, ``temporal_embedding``, the last norm and
    the head. With ``adapters=()`` it is the frozen space-only rung, a probe on frame-averaged features. With
    ``tune="all"`` everything trains, but for the ``temporal_embedding`` of a model without adapters.

    Args:
        num_tadapter: 1, or 2 for an adapter before temporal attention too (Something-Something v2).
        adapter_scale: factor of the joint adapter: 0.5 on Kinetics and Diving-48, 1 on Something-Something v2.
        adapter_ratio: hidden units of an adapter per channel.
        drop_path: droppath rate of the last block; rates grow linearly from 0 at the first.
        drop_path_mode: "position" (published code on CLIP), "frame" (on ImageNet's ViT) or "clip" (paper), see
            ``aim_kernels.DropPath``.
        adapters: which of "spatial", "temporal", "joint" a block has (the ablation rungs).
        adapter_layers: which blocks have them: "all", "bottom" or "top" (half), "alternate", or numbers from 0. Blocks
            below the lowest are plain frozen blocks: no gradient is computed and nothing is kept there.
        temporal_place: where ``temporal_embedding`` is added: "lowest" to the input of the lowest block with adapters
            (the stem, where that is block 0), or "stem" always, as the published code does, which then needs a
            gradient through every block; "frozen" leaves it at zero.
        tune: "adapters", or "all" for full fine-tuning.
    """

    name: ClassVar[str] = "aim"
    line: ClassVar[str] = "adapters after the attentions over time and space and beside the MLP (ICLR 2023)"
    over_time: ClassVar[bool] = True

    num_tadapter: int = 1
    adapter_scale: float = 0.5
    adapter_ratio: float = 0.25
    drop_path: float = 0.2
    drop_path_mode: DropPathMode = "position"
    adapters: Collection[AdapterPlace] = ("spatial", "temporal", "joint")
    adapter_layers: str | Sequence[int | str] = "all"
    temporal_place: TemporalPlace = "lowest"
    tune: Tune = "adapters"

    def fitted(self, depth: int) -> Self:
        check_tune(self.tune)
        if self.temporal_place not in get_args(TemporalPlace):
            raise ValueError(f"temporal_place {self.temporal_place!r} is none of {', '.join(get_args(TemporalPlace))}")
        check_drop_path(self.drop_path)
        places = tuple(self.adapters)
        layers = resolve_layers(self.adapter_layers, depth) if places else ()
        if places and not layers:
            raise ValueError("adapter_layers names no block: name some, or give no adapters")
        return replace(self, adapters=places, adapter_layers=layers)

    def block_arguments(self, number: int, depth: int) -> dict[str, Any]:
        return {
            "num_tadapter": self.num_tadapter,
            "adapter_scale": self.adapter_scale,
            "adapter_ratio": self.adapter_ratio,
            "drop_path": self.drop_path * number / max(depth - 1, 1),
            "drop_path_mode": self.drop_path_mode,
            "adapters": self.adapters if number in self.adapter_layers else (),
        }

    def trains(self, name: str, last_norm: str) -> bool:
        if name == "temporal_embedding":
            return bool(self.adapters) and self.temporal_place != "frozen"
        adapted = bool(self.adapters) and ("_Adapter" in name or name.startswith(last_norm))
        return adapted or self.tune == "all"

    def lowest(self, depth: int) -> int:
        if self.tune == "all" or (self.adapters and self.temporal_place == "stem"):
            return 0
        return min((int(number) for number in self.adapter_layers), default=depth)

    def moves_time(self, depth: int) -> bool:
        return 0 < self.lowest(depth) < depth and self.temporal_place == "lowest"
