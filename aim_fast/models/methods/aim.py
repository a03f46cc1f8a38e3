"""AIM: a frozen image Transformer with spatial, temporal and joint adapters in its blocks.

The mathematics is that of :mod:`aim_kernels.adaptation`. Source: Yang et al., AIM: Adapting Image Models for Efficient
Video Action Recognition, ICLR 2023, and its public implementation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from aim_fast.models.adapting import Adapting
from aim_fast.models.method import Method
from aim_fast.models.methods.adapter_layers import resolve_layers


@dataclass(frozen=True)
class AIM(Adapting, Method):
    """Adapters on a frozen trunk. What trains, as published: every adapter, ``temporal_embedding``, the last norm and
    the head. With ``adapters=()`` it is the frozen space-only rung, a probe on frame-averaged features. With
    ``tune="all"`` everything trains, but for the ``temporal_embedding`` of a model without adapters.
    """

    name: ClassVar[str] = "aim"
    line: ClassVar[str] = "adapters after the attentions over time and space and beside the MLP (ICLR 2023)"
    over_time: ClassVar[bool] = True

    def fitted(self, depth: int) -> Self:
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

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        return any("_Adapter.D_fc1." in name for name in names)

    @classmethod
    def in_words(cls) -> str:
        return "an AIM checkpoint, with adapters: use an aim_vit model, or plain CLIP weights"

    def moves_time(self, depth: int) -> bool:
        return 0 < self.lowest(depth) < depth and self.temporal_place == "lowest"
