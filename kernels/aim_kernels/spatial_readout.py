"""The spatial sub-block where only the class token is read afterwards: the last block of a model that pools it.

    x'_0 = x_0 + Wo a + W2·gelu(W' a + b') + (bo + b2),   a = softmax_n(q·k_n/√d)·v of the one query q = Wq z_0 + bq

Token 0 is the class token, z = ln_1(x). With one query a head, keys and values need not be formed: with q̃ = Wkᵀq/√d

    s_n = q̃·z_n + B_0n  (bk·q is the same for every n and leaves the softmax),   p = softmax(s),   m = Σ_n p_n z_n,
    a = Wv m + bv

with B_0n the class token's row of a trunk's relative bias, where there is one. That is h·N·D multiply-adds a frame in
place of 2·N·D². Backward, with dm = Wvᵀ da and dp_n = dm·z_n:

    ds = p∘(dp − Σ p dp),   dz_n = p_n dm + ds_n q̃,   dq = Wk (Σ_n ds_n z_n)/√d,   dz_0 += Wqᵀ dq

All of it in float32 (float64 for float64): a score sums D products where a formed key's sums d, so its operands must
not be rounded. Kept for backward: x, and p [B, T, h, N]. The same function as :mod:`aim_kernels.spatial_adaptation`,
whose value at token 0 it gives. Under a rotation q̃ is another for every n: keys are formed then, in autograd around
the operators, and what follows the attention reads one token all the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels.formed_adapter import formed_of, plain
from aim_kernels.layer_norm import layer_norm_to_keep
from aim_kernels.memory import copied_for_backward
from aim_kernels.precision import compute_dtype
from aim_kernels.registration import operator, ops
from aim_kernels.rotation import Rotation
from aim_kernels.shared_norms import Ahead, Normed, add_and_norm, arrive, constants_of, left, normed_of
from aim_kernels.spatial_adaptation import project, project_backward
from aim_kernels.spatial_attention import check_bias
from aim_kernels.trained_trunk import spatial_sub_block
from aim_kernels.weights import (
    NOT_FORMED,
    UNSCALED,
    AdapterNeeds,
    AdapterWeights,
    AttentionWeights,
    FormedAdapter,
    Keeping,
    NormWeights,
    ScaledTrunk,
    apply,
    recorded,
    require_gradient,
)


def spatial_readout(
    x: Tensor,
    norm: NormWeights,
    attention: AttentionWeights,
    num_heads: int,
    adapter: AdapterWeights | FormedAdapter | None = None,
    eps: float = 1e-5,
    rotation: Rotation | None = None,
    bias: Tensor | None = None,
    scaled: ScaledTrunk = UNSCALED,
    before: Ahead | None = None,
    ahead: Ahead | None = None,
) -> Tensor:
    """``spatial_adaptation(x, ...)[:, :, :1]``: ``x`` [B, T, N, D] to [B, T, 1, D], same value to rounding.

    Differentiable in ``x`` and the adapter; where a trunk weight, the table of ``rotation`` or ``bias`` requires a
    gradient, in everything. ``before`` and ``ahead`` are the norms of ``x``, in float32 at least, and of the output,
    where neighbours share them (:mod:`aim_kernels.shared_norms`).
    Raises ValueError for a ``bias`` that is not [1, h, N, N].
    """
    if not x.numel() or rotation is not None or require_gradient(norm, attention, (bias,)):
        scores = {"rotation": rotation, "bias": bias, "cls_only": True, "scaled": scaled}
        return spatial_sub_block(x, norm, attention, num_heads, plain(adapter), eps, **scores)
    check_bias(bias, num_heads, x.shape[2])
    row = None if bias is None else bias[0, :, 0]
    dtype = compute_dtype(x, attention.qkv_weight)
    ready = formed_of(adapter, dtype, reads=attention[2:], beside=attention.out_bias)
    normed, constants = normed_of(x, before), (num_heads, eps, dtype, recorded((x,), ready), scaled)
    operands = _Operands(x, normed, ahead, norm, attention, ready, row, *constants)
    out = apply(_SpatialReadout, operands, x, *(ready or NOT_FORMED))
    return out if ahead is None else ahead.filled(out)


class _Operands(NamedTuple):
    x: Tensor
    normed: Normed | None
    ahead: Ahead | None
    norm: NormWeights
    attention: AttentionWeights
    adapter: FormedAdapter | None
    row: Tensor | None
    num_heads: int
    eps: float
    dtype: torch.dtype
    recorded: bool
    scaled: Any  # ScaledTrunk, of which the output projection is read


_KEEPING = Keeping(_Operands, given=2)


class _SpatialReadout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: _Operands, *_: Tensor | None) -> Any:
        normed = o.normed
        if normed is None:
            y, *statistics, kept = layer_norm_to_keep(o.x, o.norm, o.eps, precise(o.x), o.dtype, o.recorded)
            normed = Normed(y, None if kept is o.x else kept, *statistics)
        ahead = o.ahead
        qkv_weights = (o.attention.qkv_weight, o.attention.qkv_bias)
        a, p = ops.readout(normed.y.view(-1, *o.x.shape[2:]), *qkv_weights, o.num_heads, o.row)
        rows = a.to(o.dtype)
        branch = project(rows, o.adapter, o.attention, o.scaled.out, o.dtype)
        out = add_and_norm(o.x[:, :, :1], branch, None, None, ahead, o.dtype)
        lead, mean = o.x.shape[:-1], normed.mean
        mean, rstd = mean.view(lead) if mean is not None and mean.numel() else mean, normed.rstd.view(lead)
        _KEEPING.keep(ctx, normed.kept_of(o.x), o, *left(out, ahead), mean, rstd, rows, p)
        constants_of(ctx, out)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor, dy: Tensor | None = None, *_: None) -> tuple[Any, ...]:
        o, *found, mean, rstd, rows, p = _KEEPING.kept(ctx)
        _, needs_x, *flags = ctx.needs_input_grad
        needs = AdapterNeeds(*flags)
        adapter, norm = copied_for_backward(o.adapter, g), copied_for_backward(o.norm, g)
        scaled = o.scaled.out is not None
        g, branch, sums, eight = arrive((g, dy), found, o.dtype, needs.b2, scaled=scaled)
        out = (adapter, o.attention, o.scaled.out)
        da, gradients = project_backward(branch, sums, rows, *out, needs_x, needs, eight)
        dx = None
        if da is not None:
            z, _, _ = ops.layer_norm(o.x, *norm, o.eps, p.dtype)
            qkv_weights = (o.attention.qkv_weight, o.attention.qkv_bias)
            dz = ops.readout_backward(da.to(p.dtype), z.flatten(0, 1), p, *qkv_weights)
            around = torch.cat([g, g.new_zeros(*g.shape[:2], o.x.shape[2] - 1, g.shape[3])], 2)
            # by itself, though another ran its norm: two gradients in float32 would be the most that a step holds
            dx = ops.layer_norm_backward(dz.view(o.x.shape), o.x, norm.weight, mean, rstd, around)
        return None, dx, *gradients


def precise(x: Tensor) -> torch.dtype:
    """The dtype of all that a readout of ``x`` computes."""
    return torch.promote_types(x.dtype, torch.float32)


def _query(z: Tensor, weight: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """q̃ [F, h, D] of ``z`` [F, N, D], and Wk [h, d, D]."""
    width = z.shape[-1]
    keys = weight[width : 2 * width].unflatten(0, (heads, -1))
    q = F.linear(z[:, 0], weight[:width], bias[:width]).unflatten(-1, (heads, -1))  # [F, h, d]
    return _scaled(q.transpose(0, 1), keys, keys).transpose(0, 1), keys


def _scaled(a: Tensor, b: Tensor, keys: Tensor) -> Tensor:
    """``a`` ``b`` / √d, of ``keys`` [h, d, D]."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=keys.shape[1] ** -0.5)


def _readout(
    z: Tensor, weight: Tensor, bias: Tensor, num_heads: int, row: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``a`` [F, D] and ``p`` [F, h, N] of ``z`` [F, N, D] in float32 or float64, ``row`` [h, N] added to the scores."""
    with torch.autocast(z.device.type, enabled=False):
        weight, bias, width = weight.to(z.dtype), bias.to(z.dtype), z.shape[-1]
        query, _ = _query(z, weight, bias, num_heads)
        scores = query @ z.transpose(1, 2)
        p = (scores if row is None else scores + row.to(z.dtype)).softmax(-1)
        values = weight[2 * width :].unflatten(0, (num_heads, -1))  # [h, d, D]
        a = (p @ z).transpose(0, 1) @ values.transpose(1, 2)  # [h, F, d]
        return a.transpose(0, 1).flatten(1) + bias[2 * width :], p


def _readout_backward(da: Tensor, z: Tensor, p: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``dz`` [F, N, D] in the dtype of ``z``."""
    with torch.autocast(z.device.type, enabled=False):
        weight, bias, width, heads = weight.to(z.dtype), bias.to(z.dtype), z.shape[-1], p.shape[1]
        query, keys = _query(z, weight, bias, heads)
        values = weight[2 * width :].unflatten(0, (heads, -1))
        dm = (da.unflatten(-1, (heads, -1)).transpose(0, 1) @ values).transpose(0, 1)  # [F, h, D]
        dp = dm @ z.transpose(1, 2)
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)  # [F, h, N]
        dz = torch.cat([p, ds], 1).transpose(1, 2) @ torch.cat([dm, query], 1)
        dq = _scaled((ds @ z).transpose(0, 1), keys.transpose(1, 2), keys)  # [h, F, d]
        dz[:, 0].addmm_(dq.transpose(0, 1).flatten(1), weight[:width])
        return dz


def _fake(z: Tensor, weight: Tensor, bias: Tensor, num_heads: int, row: Tensor | None = None) -> tuple[Tensor, Tensor]:
    frames, tokens, width = z.shape
    return z.new_empty((frames, width)), z.new_empty((frames, num_heads, tokens))


def _backward_fake(da: Tensor, z: Tensor, p: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return z.new_empty(z.shape)


operator(
    "readout",
    "(Tensor z, Tensor weight, Tensor bias, int num_heads, Tensor? row=None) -> (Tensor, Tensor)",
    reference=_readout,
    fake=_fake,
)
operator(
    "readout_backward",
    "(Tensor da, Tensor z, Tensor p, Tensor weight, Tensor bias) -> Tensor",
    reference=_readout_backward,
    fake=_backward_fake,
)
