"""TimeSformer: divided attention over time and space, the fully fine-tuned peer of AIM.

A block, f droppath's factor, drawn anew for each branch; ``attend`` and ``expand`` are the trunk's own:

    x = x + T_Adapter(f · t_attn_over_T(t_norm(x)))         T_Adapter = Linear(D, D)
    x = x + f · attend(x)
    x = x + f · expand(x)

``t_attn`` and ``t_norm`` are parameters of their own, copied from the block's attention and the norm before it when a
trunk's weights are loaded; ``T_Adapter`` starts at zero, so that a model with a fresh trunk is the trunk frame by frame
(the sources fix no initial value; TimeSformer's own code starts its counterpart at zero too). Source: Bertasius et al.,
Is Space-Time Attention All You Need for Video Understanding?, ICML 2021, in the form that Yang et al., ICLR 2023,
compare AIM with, on CLIP.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from aim_fast.models.adapting import Adapting
from aim_fast.models.choices import Tune
from aim_fast.models.method import Method
from aim_fast.models.record import like
from aim_kernels.choices import DropPathMode

if TYPE_CHECKING:
    from torch import Tensor

_OWN = ("t_attn", "t_norm", "T_Adapter")


@dataclass(frozen=True)
class TimeSformer(Method):
    """Divided attention; ``memory`` of a block: "fast" keeps all that backward reads, "balanced" all but the MLP's
    hidden state, "lean" its input alone; the rest is computed again.

    Args:
        drop_path, drop_path_mode: as AIM's.
        tune: "all" trains everything; "adapters" what the published code leaves trainable when it freezes by name:
            ``temporal_embedding``, every ``T_Adapter``, the last norm and the head.
    """

    name: ClassVar[str] = "timesformer"
    line: ClassVar[str] = "attention over time of its own before the one over space, all trained (ICML 2021)"
    over_time: ClassVar[bool] = True

    drop_path: float = like(Adapting, "drop_path")
    drop_path_mode: DropPathMode = like(Adapting, "drop_path_mode")
    tune: Tune = like(Adapting, "tune", default="all")

    def extend(self, block: Any, number: int, depth: int) -> None:
        from aim_fast.models.methods.divided_attention import divide

        divide(block, self.drop_path * number / max(depth - 1, 1), self.drop_path_mode)

    def reset(self, block: Any) -> None:
        from aim_fast.models.methods.divided_attention import reset_divided

        reset_divided(block)

    def trains(self, name: str, last_norm: str) -> bool:
        return self.tune == "all" or "T_Adapter" in name or name.startswith(("temporal_embedding", last_norm))

    def lowest(self, depth: int) -> int:
        return 0

    def is_own(self, name: str) -> bool:
        return name == "temporal_embedding" or any(f".{part}." in name for part in _OWN)

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        return any(".t_attn." in name for name in names)

    @classmethod
    def in_words(cls) -> str:
        return "a TimeSformer: use --model timesformer_b16_clip or its L/14, or plain CLIP"

    def trunk_loaded(self, blocks: Iterable[Any]) -> list[str]:
        from aim_fast.models.methods.divided_attention import copy_attention

        for block in blocks:
            copy_attention(block)
        return ["temporal attention and its norm start as copies of the spatial ones, T_Adapter at zero"]

    def run(self, block: Any, x: Tensor, cls_only: bool) -> Tensor:
        from aim_fast.models.methods.divided_attention import run_divided

        out = run_divided(block, x)
        return out[:, :, :1] if cls_only else out
