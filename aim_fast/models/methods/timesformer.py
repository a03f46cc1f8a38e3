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
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.models.block import dropped
from aim_fast.models.choices import Tune
from aim_fast.models.method import Method
from aim_fast.models.video_model import check_tune
from aim_kernels.adaptation import attention_over_time
from aim_kernels.choices import DropPathMode, Memory
from aim_kernels.memory import run_again
from aim_kernels.modules import DropPath, TemporalAttention
from aim_kernels.precision import compute_dtype
from aim_kernels.trained_trunk import attention_branch
from aim_kernels.weights import NormWeights

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

    drop_path: float = 0.2
    drop_path_mode: DropPathMode = "position"
    tune: Tune = "all"

    def fitted(self, depth: int) -> Self:
        check_tune(self.tune)
        return self

    def extend(self, block: Any, number: int, depth: int) -> None:
        before = list(block._modules)
        block.t_norm = nn.LayerNorm(block.dim, eps=block.eps)
        block.t_attn = TemporalAttention(block.dim, block.num_heads)
        block.T_Adapter = nn.Linear(block.dim, block.dim)
        block.drop_path = DropPath(self.drop_path * number / max(depth - 1, 1), self.drop_path_mode)
        for name in before:  # the order of a checkpoint's optimiser
            block._modules[name] = block._modules.pop(name)

    def reset(self, block: Any) -> None:
        self._copy(block)
        nn.init.zeros_(block.T_Adapter.weight)
        nn.init.zeros_(block.T_Adapter.bias)

    def trains(self, name: str, last_norm: str) -> bool:
        return self.tune == "all" or "T_Adapter" in name or name.startswith(("temporal_embedding", last_norm))

    def lowest(self, depth: int) -> int:
        return 0

    def is_own(self, name: str) -> bool:
        return name == "temporal_embedding" or any(f".{part}." in name for part in _OWN)

    def trunk_loaded(self, blocks: Iterable[Any]) -> list[str]:
        for block in blocks:
            self._copy(block)
        return ["temporal attention and its norm start as copies of the spatial ones, T_Adapter at zero"]

    @torch.no_grad()
    def _copy(self, block: Any) -> None:
        norm, attention = block.attention_weights()
        for own, theirs in zip((block.t_norm.weight, block.t_norm.bias, *block.t_attn.weights), (*norm, *attention)):
            own.zero_() if theirs is None else own.copy_(theirs)  # an RMS norm has no bias

    def run(self, block: Any, x: Tensor, cls_only: bool) -> Tensor:
        time, space, mlp = (block.drop_path(x) for _ in range(3))
        if block.memory == "lean" and torch.is_grad_enabled():
            dtype = compute_dtype(x, block.t_attn.in_proj_weight)
            out = run_again(partial(_adapt, block), x, time, space, mlp, "fast", dtype=dtype)
        else:
            out = _adapt(block, x, time, space, mlp, block.memory)
        return out[:, :, :1] if cls_only else out


def _adapt(
    block: Any, x: Tensor, time: Tensor | None, space: Tensor | None, mlp: Tensor | None, memory: Memory
) -> Tensor:
    x = x + F.linear(dropped(_attend_time(block, x), time), block.T_Adapter.weight, block.T_Adapter.bias)
    x = x + dropped(block.attend(x), space)
    return x + dropped(block.expand(x, memory), mlp)


def _attend_time(block: Any, x: Tensor) -> Tensor:
    norm, weights = block.t_norm, block.t_attn.weights
    if block.backend == "reference":
        qkv = F.linear(norm(x), weights.qkv_weight, weights.qkv_bias)
        return block.t_attn.out_proj(attention_over_time(qkv, block.num_heads))
    return attention_branch(x, NormWeights(norm.weight, norm.bias), weights, block.num_heads, "time", eps=norm.eps)
