"""BitFit: of a frozen trunk every bias trains, of its products and its norms.

The stem, the tail and the head are AIM's: ``temporal_embedding``, the last norm and the head train too. Without
attention over time the order of frames reaches the logits through ``temporal_embedding`` alone; with
``attention_over_time`` a block first has AIM's temporal rung, its attention over the frames of a position under a new
adapter. The cost is that of the frozen trunk. Source: Ben Zaken et al., BitFit, ACL 2022; on video the form is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from aim_fast.models.adapting import Adapting
from aim_fast.models.method import Method
from aim_fast.models.record import argument, like


@dataclass(frozen=True)
class BitFit(Method):
    """Every bias.

    Args:
        attention_over_time: whether the trunk's attention runs over time as well, under AIM's temporal adapter.
        adapter_ratio: hidden units of that adapter per channel.
    """

    heading: ClassVar[str] = "BitFit"
    name: ClassVar[str] = "bitfit"
    line: ClassVar[str] = "every bias of the trunk (ACL 2022); order-blind but for --attention-over-time"
    over_time: ClassVar[bool] = True

    attention_over_time: bool = argument(
        False, "BitFit, LoRA: the trunk's attention over time too, under AIM's temporal adapter", alike=True
    )
    adapter_ratio: float = like(Adapting, "adapter_ratio")

    def block_arguments(self, number: int, depth: int) -> dict[str, Any]:
        return {"adapters": ("temporal",) if self.attention_over_time else (), "adapter_ratio": self.adapter_ratio}

    def trains(self, name: str, last_norm: str) -> bool:
        return name.endswith("bias") or self.is_own(name) or name.startswith(last_norm)

    def lowest(self, depth: int) -> int:
        return 0
