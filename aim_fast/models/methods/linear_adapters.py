"""ZeroI2V's modules in a frozen block, the block's forward with them, and their merge into the trunk.

Shapes: x [B, T, N, D], D width. The mathematics is in :mod:`aim_fast.models.methods.zeroi2v`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aim_fast.models.block import products
from aim_kernels.choices import Memory
from aim_kernels.precision import compute_dtype
from aim_kernels.temporal_shift import temporal_shift


class LinearAdapter(nn.Module):
    """``z + scale · (D_fc2 dropout(D_fc1 z))``; starts as z: the second product is zero."""

    def __init__(self, dim: int, ratio: float, scale: float, dropout: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        if hidden < 1:
            raise ValueError(f"adapter_ratio {ratio} of width {dim} leaves no hidden unit: use at least {1 / dim:.4g}")
        self.scale = scale
        self.D_fc1 = nn.Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.D_fc2 = nn.Linear(hidden, dim)

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.D_fc1.weight, std=0.02)
        for zero in (self.D_fc1.bias, self.D_fc2.weight, self.D_fc2.bias):
            nn.init.zeros_(zero)

    def forward(self, z: Tensor) -> Tensor:
        dtype = compute_dtype(z, z)
        first, second = self.D_fc1, self.D_fc2
        hidden = self.dropout(F.linear(z.to(dtype), first.weight.to(dtype), first.bias.to(dtype)))
        scaled = (weight.to(dtype) * self.scale for weight in (second.weight, second.bias))
        return z + F.linear(hidden, *scaled)

    def after(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of the product with the adapter behind it, in their dtype."""
        change, moved = self._matrix(weight)
        return weight + change @ weight, bias + change @ bias + moved

    def before(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of the product with the adapter in front of it."""
        change, moved = self._matrix(weight)
        return weight + weight @ change, bias + weight @ moved

    def _matrix(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """``s W2 W1`` [D, D] and ``s (W2 b1 + b2)`` [D] in the dtype of ``like``."""
        w1, b1, w2, b2 = (t.detach().to(like.dtype) for one in (self.D_fc1, self.D_fc2) for t in (one.weight, one.bias))
        return self.scale * (w2 @ w1), self.scale * (w2 @ b1 + b2)


def run_shifted(block: Any, x: Tensor, cls_only: bool) -> Tensor:
    """The block on x, keeping for backward what its ``memory`` says."""
    lean = block.memory == "lean" and torch.is_grad_enabled()
    if not lean:
        return _adapt(block, x, block.memory, cls_only)
    # dropout draws again in backward what it drew before
    random = block.training and block.method.zero_dropout > 0
    return checkpoint(_adapt, block, x, "fast", cls_only, use_reentrant=False, preserve_rng_state=random)


def _adapt(block: Any, x: Tensor, memory: Memory, cls_only: bool) -> Tensor:
    before, after, into, out = (
        getattr(block, name, None) for name in ("T_Adapter_in", "S_Adapter", "MLP_Adapter", "MLP_Adapter_out")
    )
    whole = block.backend == "reference"  # whose products are counted as published
    groups, size = 2 * block.method.shift_reach, block.dim // block.method.shift_div

    def shifted(_: Tensor, qkv: Tensor) -> Tensor:
        return temporal_shift(qkv, groups, size)

    attended = block.attend(x, cls_only=cls_only and not whole, before=before, change=shifted)
    x = x[:, :, : attended.shape[2]] + (attended if after is None else after(attended))
    branch = block.expand(x, memory, before=into)
    x = x + (branch if out is None else out(branch))
    return x[:, :, :1] if cls_only else x


@torch.no_grad()
def merge_linear(block: Any) -> list[tuple[Tensor, Tensor]]:
    """What :func:`products` of the block become with its adapters in them, float64."""
    qkv, out, fc, proj = ((weight.double(), bias.double()) for weight, bias in products(block))
    qkv, out, fc = block.T_Adapter_in.before(*qkv), block.S_Adapter.after(*out), block.MLP_Adapter.before(*fc)
    proj = block.MLP_Adapter_out.after(*proj) if hasattr(block, "MLP_Adapter_out") else proj
    return [qkv, out, fc, proj]
