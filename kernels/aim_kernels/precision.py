"""Holding the frozen trunk in half precision, once: its float32 copy is not needed by anything.

Adapters keep float32 master weights and are cast where they are used; norm parameters stay float32 (they are small, and
the norms compute in float32). Gradients of everything trainable are those of mixed precision, see
tests/kernels/test_precision.py.
"""

from __future__ import annotations

import torch
from torch import nn

from aim_kernels.modules import AIMBlock


def hold_trunk(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts, in place, the frozen attention and MLP weights of every :class:`AIMBlock` in ``model`` to ``dtype``.

    Weights that require a gradient are left alone. Returns ``model``.
    """
    for block in model.modules():
        if isinstance(block, AIMBlock):
            for part in (block.attn, block.mlp):
                for parameter in part.parameters():
                    if not parameter.requires_grad:
                        parameter.data = parameter.data.to(dtype)
    return model
