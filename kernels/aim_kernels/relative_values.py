"""Attention maps between patches of neighbouring frames, and what they sum: a value per relative position alone.

    maps    a[b, t, q, k] = mean over heads of softmax_k(q[b, t, q]·k[b, s, k] / √d),  s = t − 1 or t + 1
    values  v[b, t, q] = Σ_k a[b, t, q, k] w[(qy − ky + g − 1)(2g − 1) + (qx − kx + g − 1)]

Patches P = g² in a square, row by row; ``a`` [B, t, P, P]; ``w`` [(2g − 1)², D]; ``v`` [B, t, P, D]. The table is never
gathered by pairs, P²·D numbers: of one row qy of queries, a row of ``a`` is written at its offset in rows of 2g − 1
columns, and multiplied with the 2g − 1 by g rows of the table that are met, as they lie there. Kept for backward: ``a``
and ``w``. Source: Lin et al., Frozen CLIP Models are Efficient Video Learners, ECCV 2022, section 3.3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def neighbour_maps(qkv: Tensor, num_heads: int, prefix: int) -> tuple[Tensor, Tensor]:
    """``a`` of frames 1 to T − 1 with the frame before, and of frames 0 to T − 2 with the one after.

    ``qkv`` [B, T, N, 3D] packed, of whose N tokens the first ``prefix`` are no patches; both [B, T − 1, P, P] in its
    dtype. One pair of frames at a time: what all heads see of it is B·h·P² numbers.
    """
    d = qkv.shape[-1] // 3 // num_heads
    q, k, _ = qkv[:, :, prefix:].unflatten(-1, (3, num_heads, d)).permute(3, 1, 0, 4, 2, 5)  # each [T, B, h, P, d]
    pairs = [(t, t - 1) for t in range(1, len(q))], [(t, t + 1) for t in range(len(q) - 1)]
    before, after = ([_map(q[t], k[s], d).to(qkv.dtype) for t, s in pair] for pair in pairs)
    none = [q.new_empty(qkv.shape[0], 0, q.shape[-2], q.shape[-2])]
    return tuple(torch.stack(maps, 1) if maps else none[0] for maps in (before, after))  # type: ignore[return-value]


def _map(q: Tensor, k: Tensor, d: int) -> Tensor:
    scores = (q * d**-0.5) @ k.transpose(-1, -2)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1).mean(1)


def relative_values(maps: Tensor, table: Tensor) -> Tensor:
    """``v`` [B, t, P, D] in the dtype of ``maps``, differentiable in both.

    Raises ValueError for a table that is not of all relative positions of a square of P patches.
    """
    side = math.isqrt(maps.shape[-1])
    if side * side != maps.shape[-1] or len(table) != (2 * side - 1) ** 2:
        raise ValueError(f"relative_values of maps {list(maps.shape)} takes no table {list(table.shape)}")
    return _RelativeValues.apply(maps, table, side)


def relative_values_reference(maps: Tensor, table: Tensor) -> Tensor:
    """``v`` in plain torch: the table's row of every pair."""
    side = math.isqrt(maps.shape[-1])
    patches = torch.arange(side * side, device=maps.device)
    y, x = patches // side, patches % side
    rows = (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1  # [P, P]
    return torch.einsum("btqk,qkc->btqc", maps, table[rows].to(maps.dtype))


class _RelativeValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, table: Tensor, side: int) -> Tensor:
        ctx.save_for_backward(maps, table)
        ctx.side = side
        b, t, patches, _ = maps.shape
        met, width = _by_offset(table.to(maps.dtype), side), table.shape[1]
        out = maps.new_empty(b, t, side, side, width)
        for row in range(side):
            out[:, :, row] = (_shifted(maps, row, side) @ _met(met, row, side)).view(b, t, side, width)
        return out.view(b, t, patches, width)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (maps, table), side = ctx.saved_tensors, ctx.side
        b, t, _, _ = maps.shape
        width = table.shape[1]
        rows = g.reshape(b, t, side, side, width).to(maps.dtype)
        dmaps = dtable = None
        if ctx.needs_input_grad[0]:
            dmaps, met = torch.empty_like(maps), _by_offset(table.to(maps.dtype), side)
            for row in range(side):
                wide = rows[:, :, row].reshape(b * t * side, width) @ _met(met, row, side).t()
                dmaps[:, :, row * side : (row + 1) * side] = _offsets(wide, b, t, side).flatten(3)
        if ctx.needs_input_grad[1]:
            precise = torch.promote_types(maps.dtype, torch.float32)
            met = table.new_zeros(2 * side - 1, 2 * side - 1, width, dtype=precise)
            for row in range(side):
                found = _shifted(maps, row, side).t() @ rows[:, :, row].reshape(b * t * side, width)
                met[side - 1 - row : 2 * side - 1 - row] += found.view(side, 2 * side - 1, width)
            dtable = met.flatten(0, 1).flip(0).to(table.dtype)
        return dmaps, dtable, None


def _by_offset(table: Tensor, side: int) -> Tensor:
    """The table [2g − 1, 2g − 1, D] from the largest offset down: key ky of query qy meets row g − 1 − qy + ky."""
    return table.flip(0).unflatten(0, (2 * side - 1, 2 * side - 1))


def _met(table: Tensor, row: int, side: int) -> Tensor:
    """[g·(2g − 1), D]: what the keys meet of queries in row ``row``."""
    return table[side - 1 - row : 2 * side - 1 - row].flatten(0, 1)


def _shifted(maps: Tensor, row: int, side: int) -> Tensor:
    """[B·t·g, g·(2g − 1)]: the maps of the queries in a row, key kx of query qx in column g − 1 − qx + kx."""
    b, t, _, _ = maps.shape
    wide = maps.new_zeros(b * t * side, side * (2 * side - 1))
    _offsets(wide, b, t, side).copy_(maps[:, :, row * side : (row + 1) * side].unflatten(3, (side, side)))
    return wide


def _offsets(wide: Tensor, b: int, t: int, side: int) -> Tensor:
    """The [B, t, qx, ky, kx] that are not zero in [B·t·g, g·(2g − 1)]: a step in qx is one column less than a row."""
    width = side * (2 * side - 1)
    strides = (t * side * width, side * width, width - 1, 2 * side - 1, 1)
    return wide.as_strided((b, t, side, side, side), strides, side - 1)
