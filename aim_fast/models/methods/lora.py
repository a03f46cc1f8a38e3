"""LoRA: low-rank changes of the queries and values of a frozen block's attention.

    q = (Wq + s U_q V_q) z + b_q,   v likewise,   k = Wk z + b_k          V r × D, U D × r, s = alpha / rank

The stem, the tail and the head are AIM's: ``temporal_embedding``, the last norm and the head train too. Without
attention over time the order of frames reaches the logits through ``temporal_embedding`` alone; with
``attention_over_time`` a block first has AIM's temporal rung, the same attention over the frames of a position under a
new adapter. After training U V merges into the products (without the temporal rung the frozen trunk is left, at its
cost). Initial values: V normal with std D^-1/2, U zero. Source: Hu et al., LoRA, ICLR 2022; on video the form is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from aim_fast.models.adapting import Adapting
from aim_fast.models.method import Method
from aim_fast.models.methods.bitfit import BitFit
from aim_fast.models.record import argument, like

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank changes; ``memory`` of a block: "fast" keeps all that backward reads, "balanced" all but what the MLP
    forms again, "lean" its input alone.

    Args:
        lora_rank: r; 0 for none: what ``aim-fast convert --merge`` makes.
        lora_alpha: alpha. attention_over_time, adapter_ratio: as BitFit's.
    """

    heading: ClassVar[str] = "LoRA"
    name: ClassVar[str] = "lora"
    line: ClassVar[str] = (
        "low-rank changes of queries and values (ICLR 2022); order-blind but for --attention-over-time"
    )
    over_time: ClassVar[bool] = True
    merges: ClassVar[Mapping[str, Any]] = {"lora_rank": 0}

    lora_rank: int = argument(8, "LoRA: rank of the changes", alike=True, ge=0)
    lora_alpha: float = argument(16.0, "LoRA: the changes are scaled by alpha / rank", told=False, alike=True)
    attention_over_time: bool = like(BitFit, "attention_over_time")
    adapter_ratio: float = like(Adapting, "adapter_ratio")

    def block_arguments(self, number: int, depth: int) -> dict[str, Any]:
        return {"adapters": ("temporal",) if self.attention_over_time else (), "adapter_ratio": self.adapter_ratio}

    def extend(self, block: Any, number: int, depth: int) -> None:
        from aim_fast.models.methods.low_rank import LowRank

        if self.lora_rank:
            block.lora = LowRank(block.dim, self.lora_rank, self.lora_alpha / self.lora_rank)

    def reset(self, block: Any) -> None:
        if self.lora_rank:
            block.lora.reset_parameters()

    def run(self, block: Any, x: Tensor, cls_only: bool) -> Tensor:
        from aim_fast.models.methods.low_rank import run_low_rank

        return block.remembering(run_low_rank, x, cls_only)

    def trains(self, name: str, last_norm: str) -> bool:
        return self.is_own(name) or name.startswith(last_norm)

    def lowest(self, depth: int) -> int:
        return 0

    def is_own(self, name: str) -> bool:
        return ".lora." in name or super().is_own(name)

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        return any(".lora.q_down" in name for name in names)

    @classmethod
    def told(cls, tensors: Mapping[tuple[int, str], Tensor]) -> dict[str, Any]:
        ranks = [len(tensor) for (_, name), tensor in tensors.items() if name == "lora.q_down"]
        over_time = any(name.startswith("T_Adapter.") for _, name in tensors)
        return {"lora_rank": ranks[0], "attention_over_time": over_time} if ranks else {}

    def merge(self, block: Any) -> list[tuple[Tensor, Tensor]]:
        from aim_fast.models.methods.low_rank import merge_low_rank

        return merge_low_rank(block)
