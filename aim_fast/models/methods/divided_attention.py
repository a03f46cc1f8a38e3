"""The modules of divided attention in a frozen block, and the block's forward with them.

Shapes: x [B, T, N, D]. The mathematics is in :mod:`aim_fast.models.methods.timesformer`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.models.block import dropped
from aim_kernels.adaptation import attention_over_time
from aim_kernels.choices import DropPathMode, Memory
from aim_kernels.drop_path import DropPath
from aim_kernels.memory import run_again
from aim_kernels.modules import TemporalAttention
from aim_kernels.precision import compute_dtype
from aim_kernels.trained_trunk import attention_branch
from aim_kernels.weights import NormWeights


def divide(block: Any, drop_path: float, mode: DropPathMode) -> None:
    """Gives a block ``t_norm``, ``t_attn``, ``T_Adapter`` and its droppath."""
    before = list(block._modules)
    block.t_norm = nn.LayerNorm(block.dim, eps=block.eps)
    block.t_attn = TemporalAttention(block.dim, block.num_heads)
    block.T_Adapter = nn.Linear(block.dim, block.dim)
    block.drop_path = DropPath(drop_path, mode)
    for name in before:  # the order of a checkpoint's optimiser
        block._modules[name] = block._modules.pop(name)


def reset_divided(block: Any) -> None:
    """Initialises them."""
    copy_attention(block)
    nn.init.zeros_(block.T_Adapter.weight)
    nn.init.zeros_(block.T_Adapter.bias)


@torch.no_grad()
def copy_attention(block: Any) -> None:
    """Starts the attention over time, and its norm, as the block's over space."""
    norm, attention = block.attention_weights()
    for own, theirs in zip((block.t_norm.weight, block.t_norm.bias, *block.t_attn.weights), (*norm, *attention)):
        own.zero_() if theirs is None else own.copy_(theirs)  # an RMS norm has no bias


def run_divided(block: Any, x: Tensor) -> Tensor:
    """The block on x, keeping for backward what its ``memory`` says."""
    time, space, mlp = (block.drop_path(x) for _ in range(3))
    if block.memory == "lean" and torch.is_grad_enabled():
        dtype = compute_dtype(x, block.t_attn.in_proj_weight)
        return run_again(partial(_adapt, block), x, time, space, mlp, "fast", dtype=dtype)
    return _adapt(block, x, time, space, mlp, block.memory)


def _adapt(
    block: Any, x: Tensor, time: Tensor | None, space: Tensor | None, mlp: Tensor | None, memory: Memory
) -> Tensor:
    x = x + F.linear(
        dropped(attend_time(block, x, block.t_norm, block.t_attn), time), block.T_Adapter.weight, block.T_Adapter.bias
    )
    x = x + dropped(block.attend(x), space)
    return x + dropped(block.expand(x, memory), mlp)


def attend_time(block: Any, x: Tensor, norm: nn.LayerNorm, attention: TemporalAttention) -> Tensor:
    """``attention`` of ``norm(x)`` among the frames, [B, T, N, D], by the backend of ``block``."""
    weights = attention.weights
    if block.backend == "reference":
        qkv = F.linear(norm(x), weights.qkv_weight, weights.qkv_bias)
        return attention.out_proj(attention_over_time(qkv, block.num_heads))
    return attention_branch(x, NormWeights(norm.weight, norm.bias), weights, block.num_heads, "time", eps=norm.eps)
