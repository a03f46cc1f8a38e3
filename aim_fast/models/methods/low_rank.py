"""LoRA's parameters in a frozen block, the block's forward with them, and their merge into the trunk.

Shapes: x [B, T, N, D]. The mathematics is in :mod:`aim_fast.models.methods.lora`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.models.block import products
from aim_kernels.adaptation import adapter_reference
from aim_kernels.choices import Memory


class LowRank(nn.Module):
    """``s U V`` of queries and values, ``s`` the scale; starts as zero. ``down`` is V [r, D], ``up`` U [D, r]."""

    def __init__(self, dim: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.q_down, self.v_down = (nn.Parameter(torch.empty(rank, dim)) for _ in range(2))
        self.q_up, self.v_up = (nn.Parameter(torch.empty(dim, rank)) for _ in range(2))

    def reset_parameters(self) -> None:
        for down, up in ((self.q_down, self.q_up), (self.v_down, self.v_up)):
            nn.init.normal_(down, std=down.shape[1] ** -0.5)
            nn.init.zeros_(up)

    def forward(self, z: Tensor, qkv: Tensor) -> Tensor:
        """Packed qkv [B, T, N, 3D] of z [B, T, N, D] with the changes: two products, the second into a copy of qkv."""
        down = torch.cat([self.q_down, self.v_down]).to(z.dtype)
        low = F.linear(z.flatten(0, -2), down).to(qkv.dtype)  # [M, 2r]
        return torch.addmm(qkv.flatten(0, -2), low, self._up().to(qkv.dtype).t(), alpha=self.scale).view(qkv.shape)

    def apart(self, z: Tensor, qkv: Tensor) -> Tensor:
        """The same one after another, as it is written."""
        q, k, v = qkv.chunk(3, -1)
        q = q + self.scale * F.linear(F.linear(z, self.q_down), self.q_up)
        v = v + self.scale * F.linear(F.linear(z, self.v_down), self.v_up)
        return torch.cat([q, k, v], -1)

    def change(self) -> Tensor:
        """``s U V`` of q, k and v, [3D, D], float64."""
        down = torch.cat([self.q_down, self.v_down]).double()
        return self.scale * (self._up().double() @ down)

    def _up(self) -> Tensor:
        """U of q and v side by side, [3D, 2r], zero where they are not."""
        none = torch.zeros_like(self.q_up)
        left, right = torch.cat([self.q_up, none, none]), torch.cat([none, none, self.v_up])
        return torch.cat([left, right], 1)


def run_low_rank(block: Any, x: Tensor, memory: Memory, cls_only: bool) -> Tensor:
    """The block on x."""
    whole = block.backend == "reference"  # whose products are counted
    lora = getattr(block, "lora", None)
    change = None if lora is None else lora.apart if whole else lora
    if block.T_Adapter is not None:
        attended = block.attend(x, over_time=True, change=change)
        x = x + (adapter_reference(attended, block.T_Adapter.weights) if whole else block.T_Adapter(attended))
    attended = block.attend(x, cls_only=cls_only and not whole, change=change)
    x = block.expanded(x[:, :, : attended.shape[2]] + attended, memory)
    return x[:, :, :1] if cls_only else x


@torch.no_grad()
def merge_low_rank(block: Any) -> list[tuple[Tensor, Tensor]]:
    """What :func:`products` of the block become with the changes in them."""
    (weight, bias), *others = products(block)
    return [(weight.double() + block.lora.change(), bias), *others]
