"""The sub-blocks where the trunk itself trains: autograd over the operators, every weight with its gradient.

The written-out backward of ``temporal_adaptation`` and its two siblings computes nothing for a frozen weight and so
cannot serve a trained one. Full fine-tuning runs these instead: the attention and activation operators, which read the
packed layout in place and keep one tensor each, with torch's products and norms around them. Shapes and formulas are
those of :mod:`aim_kernels.adaptation`. ``memory`` "balanced" runs the MLP again in backward, whose hidden state is the
largest thing kept; "lean" is the block's own affair, which keeps its input alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels.adapter import adapter as bottleneck
from aim_kernels.choices import Memory, MLPActivation
from aim_kernels.layer_norm import layer_norm
from aim_kernels.memory import run_again
from aim_kernels.precision import compute_dtype
from aim_kernels.rotation import Rotation, rotated
from aim_kernels.scaled_product import frozen_linear
from aim_kernels.spatial_attention import Backend, spatial_attention
from aim_kernels.temporal_attention import temporal_attention
from aim_kernels.weights import UNSCALED, AdapterWeights, AttentionWeights, MLPWeights, NormWeights, ScaledTrunk
from aim_kernels.wide_activation import wide_activation
from aim_kernels.wide_swiglu import wide_swiglu


def attention_branch(
    x: Tensor,
    norm: NormWeights,
    attention: AttentionWeights,
    num_heads: int,
    over: Literal["time", "space"],
    adapter_in: AdapterWeights | None = None,
    eps: float = 1e-5,
    attention_backend: Backend = "auto",
    rotation: Rotation | None = None,
    bias: Tensor | None = None,
    cls_only: bool = False,
    scaled: ScaledTrunk = UNSCALED,
) -> Tensor:
    """``attn(A_in(ln(x)))`` over the frames or over the tokens of a frame, [B, T, N, D]; no residual is added.

    Differentiable in everything. ``attention_backend``, ``rotation`` and ``bias`` [1, h, N, N] are those of the
    attention over space; with ``cls_only`` the first token of each frame alone is projected, [B, T, 1, D]. Weights that
    are ``scaled`` are multiplied in eight bits.
    """
    z = layer_norm(x, *norm, eps, compute_dtype(x, attention.qkv_weight))
    if adapter_in is not None:
        z = bottleneck(z, adapter_in, skip=True)
    qkv = frozen_linear(z, attention.qkv_weight, attention.qkv_bias, scaled.qkv)
    if over == "time":
        attended = temporal_attention(qkv, num_heads)
    else:
        qkv = qkv if rotation is None else rotated(qkv, rotation, num_heads)
        attended = spatial_attention(qkv, num_heads, attention_backend, bias)
    attended = attended[:, :, :1] if cls_only else attended
    return frozen_linear(attended, attention.out_weight, attention.out_bias, scaled.out)


def spatial_sub_block(
    x: Tensor,
    norm: NormWeights,
    attention: AttentionWeights,
    num_heads: int,
    adapter: AdapterWeights | None,
    eps: float,
    **scores: Any,
) -> Tensor:
    """``x + o + A_S(o)`` with ``o`` the branch over space, or with ``cls_only`` its first token.

    ``scores`` are :func:`attention_branch`'s ``attention_backend``, ``rotation``, ``bias``, ``cls_only``, ``scaled``.
    """
    attended = attention_branch(x, norm, attention, num_heads, "space", None, eps, **scores)
    x = x[:, :, : attended.shape[2]]
    return x + attended if adapter is None else bottleneck(attended, adapter, skip=True, residual=x)


def mlp_branch(
    x: Tensor,
    norm: NormWeights,
    mlp: MLPWeights,
    adapter: AdapterWeights | None = None,
    drop: Tensor | None = None,
    scale: float = 1.0,
    activation: MLPActivation = "quick_gelu",
    eps: float = 1e-5,
    memory: Memory = "fast",
    scaled: ScaledTrunk = UNSCALED,
) -> Tensor:
    """``mlp(y) + drop · scale · A_J(y)`` with ``y = ln(x)``, [B, T, N, D]; no residual is added.

    Differentiable in everything; keeps the hidden state before its activation alone, and with ``memory`` "balanced"
    nothing but its input.
    """

    def branch(x: Tensor, drop: Tensor | None) -> Tensor:
        y = layer_norm(x, *norm, eps, compute_dtype(x, mlp.fc_weight))
        out = mlp_of(y, mlp, activation, scaled=scaled)
        if adapter is None:
            return out
        added = bottleneck(y, adapter, skip=False) * scale
        return out + (added if drop is None else added * drop)

    return _again(branch, memory, compute_dtype(x, mlp.fc_weight), x, drop)


def mlp_of(
    y: Tensor, mlp: MLPWeights, activation: MLPActivation, memory: Memory = "fast", scaled: ScaledTrunk = UNSCALED
) -> Tensor:
    """``mlp(y)``, [B, T, N, D], of what stands behind the norm; differentiable in everything."""

    def branch(y: Tensor) -> Tensor:
        weight, bias, width = mlp.fc_weight, mlp.fc_bias, len(mlp.fc_bias)
        if mlp.gate_weight is None or mlp.gate_bias is None:
            u = frozen_linear(y, weight, bias, scaled.fc).flatten(0, -2)
            hidden = wide_activation(u, width, activation)  # type: ignore[arg-type]
        else:
            if scaled.fc is None:
                u = torch.cat([F.linear(y, mlp.gate_weight, mlp.gate_bias), F.linear(y, weight, bias)], -1)
            else:
                u = frozen_linear(y, weight, torch.cat([mlp.gate_bias, bias]), scaled.fc)
            hidden = wide_swiglu(u.flatten(0, -2), width)
        return frozen_linear(hidden.unflatten(0, y.shape[:-1]), mlp.proj_weight, mlp.proj_bias, scaled.proj)

    return _again(branch, memory, compute_dtype(y, mlp.fc_weight), y)


def _again(branch: Callable[..., Tensor], memory: Memory, dtype: torch.dtype, *inputs: Any) -> Tensor:
    """``branch`` on its inputs, all that is kept of it unless ``memory`` is "fast", the first in ``dtype``."""
    if memory != "fast" and torch.is_grad_enabled():
        return run_again(branch, *inputs, dtype=dtype)
    return branch(*inputs)
