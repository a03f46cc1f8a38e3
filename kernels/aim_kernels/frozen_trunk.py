"""Holding the frozen trunk in half precision, once: its float32 copy is not needed by anything.

Adapters keep float32 master weights and are cast where they are used; norm parameters stay float32 (they are small, and
the norms compute in float32). Gradients of everything trainable are those of mixed precision, see
tests/kernels/test_precision.py.
"""

from __future__ import annotations

import torch
from torch import nn

from aim_kernels.modules import AIMBlock
from aim_kernels.swin_block import AIMSwinBlock


def hold_trunk(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts, in place, the frozen projections of every :class:`AIMBlock` and :class:`AIMSwinBlock` to ``dtype``.

    Weights that require a gradient are left alone, and so are Swin's small tables of biases. Returns ``model``.
    """
    for block in model.modules():
        parts: tuple[nn.Module, ...] = ()
        if isinstance(block, AIMBlock):
            parts = (block.attn, block.mlp)
        elif isinstance(block, AIMSwinBlock):
            parts = (block.attn.qkv, block.attn.proj, block.mlp)
        for part in parts:
            for parameter in part.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)
    return model
