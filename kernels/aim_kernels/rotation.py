"""Rotation (RoPE) of packed queries and keys by the position of their token.

    half layout          (x_i, x_{i+d/2}) ← (x_i cos_i − x_{i+d/2} sin_i,  x_{i+d/2} cos_i + x_i sin_i)
    interleaved layout   the same of the pairs (x_{2i}, x_{2i+1})

``qkv`` [B, T, N, 3D] as the projection wrote it, h heads of d channels; ``table`` [P, d], or [h, P, d] where each head
has one of its own: d/2 sines, then d/2 cosines, of the last P of the N tokens. Those before them (class token,
registers) stay as they are, and so do all values. Output fresh and contiguous, computed in float32 at least. The
backward is the same with −sin and keeps the table alone. Both layouts are read where they lie: permuted rows of the
projection would make one of the other, but would have to be formed again at every step. Source: Su et al., RoFormer,
2021.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_kernels import rotation_triton
from aim_kernels.registration import operator, ops


class Rotation(NamedTuple):
    """What turns the queries and keys of a trunk."""

    table: Tensor  # [P, d] or [h, P, d]
    interleaved: bool = False


def rotated(qkv: Tensor, rotation: Rotation, num_heads: int, inverse: bool = False) -> Tensor:
    """``qkv`` [B, T, N, 3D] with the queries and keys of the last P tokens rotated, or turned back, in the same dtype.

    Differentiable in ``qkv``; where the table requires a gradient, in both, in plain torch. Raises ValueError for
    shapes that cannot be.
    """
    table, head_dim = rotation.table, qkv.shape[-1] // 3 // num_heads
    if qkv.ndim != 4 or qkv.shape[-1] % (6 * num_heads):
        raise ValueError(f"expected packed qkv [B, T, N, 3D] in {num_heads} heads of even width, got {list(qkv.shape)}")
    if table.ndim not in (2, 3) or table.shape[-1] != head_dim or table.shape[-2] > qkv.shape[2]:
        right = f"[P, {head_dim}] or [{num_heads}, P, {head_dim}] with P up to {qkv.shape[2]}"
        raise ValueError(f"expected a table {right}, got {list(table.shape)}")
    if table.ndim == 3 and table.shape[0] != num_heads:
        raise ValueError(f"expected a table of each of {num_heads} heads, got {list(table.shape)}")
    if table.requires_grad:
        return rotation_reference(qkv, table, num_heads, rotation.interleaved, inverse)
    return ops.rotation(qkv, table, num_heads, rotation.interleaved, inverse)


def rotation_reference(qkv: Tensor, table: Tensor, num_heads: int, interleaved: bool, inverse: bool = False) -> Tensor:
    """The formula in plain torch; differentiable in both."""
    heads = qkv.unflatten(-1, (3, num_heads, -1))  # [B, T, N, 3, h, d]
    prefix, wide = qkv.shape[2] - table.shape[-2], torch.promote_types(qkv.dtype, torch.float32)
    table = table[:, None] if table.ndim == 2 else table.transpose(0, 1)  # [P, 1 or h, d]
    sin, cos = table.to(wide)[:, None].chunk(2, -1)
    sin = -sin if inverse else sin
    turned = heads[:, :, prefix:, :2].to(wide)
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pairs = first * cos - second * sin, second * cos + first * sin
    turned = (torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)).to(qkv.dtype)
    patches = torch.cat([turned, heads[:, :, prefix:, 2:]], 3).flatten(-3)
    return torch.cat([qkv[:, :, :prefix], patches], 2)


def _cpp(qkv: Tensor, table: Tensor, num_heads: int, interleaved: bool, inverse: bool) -> Tensor:
    table = table.float().contiguous()
    return torch.ops.aim_cpu.rotation(qkv.contiguous(), table, num_heads, interleaved, inverse)


def _fake(qkv: Tensor, table: Tensor, num_heads: int, interleaved: bool, inverse: bool) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, table, *ctx.how = inputs
    ctx.save_for_backward(table)


def _gradient(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    (table,), (num_heads, interleaved, inverse) = ctx.saved_tensors, ctx.how
    return ops.rotation(g, table, num_heads, interleaved, not inverse), None, None, None, None


operator(
    "rotation",
    "(Tensor qkv, Tensor table, int num_heads, bool interleaved, bool inverse) -> Tensor",
    reference=rotation_reference,
    triton=rotation_triton.rotate,
    cpp=_cpp,
    fits=lambda qkv, table, num_heads, *_: table.shape[-1] <= rotation_triton.MAX_HEAD_DIM,
    fake=_fake,
    setup_context=_setup_context,
    backward=_gradient,
)
