"""X-CLIP's forward of a block with message tokens. Shapes: x [B, T, N, D], the class token first in a frame.

The mathematics is in :mod:`aim_fast.models.methods.x_clip`. The message stands before a frame's other tokens here, so
that a trunk that turns its patches finds them where it counts them, from the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_fast.models.methods.divided_attention import attend_time
from aim_kernels.adaptation import norm_reference
from aim_kernels.choices import Memory
from aim_kernels.layer_norm import layer_norm


def run_with_messages(block: Any, x: Tensor, memory: Memory, cls_only: bool) -> Tensor:
    message = block.message_fc(x[:, :, :1])  # [B, T, 1, D]
    message = message + attend_time(block, message, block.message_ln, block.message_attn)
    weight, bias = block.attention_weights()[0]

    def beside(z: Tensor) -> Tensor:
        fused = block.backend == "fused"
        m = (
            layer_norm(message, weight, bias, block.eps, z.dtype)
            if fused
            else norm_reference(message, weight, bias, block.eps)
        )
        return torch.cat([m.to(z.dtype), z], dim=2)

    x = block.expanded(x + block.attend(x, before=beside)[:, :, 1:], memory)
    return x[:, :, :1] if cls_only else x
