"""The spatial sub-block as one differentiable function with the adapter riding on the output projection.

    x' = x + Wo a + W2·gelu(W' a + b') + (bo + b2),   a = spatial attention of R(Wqkv ln_1(x) + bqkv)
    W' = W1 Wo,  b' = W1 bo + b1;  backward: da = Woᵀ g + W'ᵀ du, one accumulated product

R turns the queries and keys of a trunk that does so (:mod:`aim_kernels.rotation`), and back in backward. Shapes as in
:mod:`aim_kernels.adaptation`. Kept for backward, in vectors of width D per token in the products' dtype: ``fast`` x,
qkv (3, turned), a, the adapter's hidden state formed again; ``balanced`` x and qkv, the attention run again; ``lean`` x
alone. Derivation: kernels/README.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels.adaptation import spatial_adaptation_reference
from aim_kernels.choices import Memory
from aim_kernels.column_sum import branch_gradient
from aim_kernels.folded_projection import fold_projection, folded_gradients
from aim_kernels.layer_norm import layer_norm_to_keep
from aim_kernels.memory import check_memory, copied_for_backward
from aim_kernels.precision import cast, compute_dtype
from aim_kernels.residual import residual_add
from aim_kernels.rotation import Rotation, rotated
from aim_kernels.spatial_attention import Backend, backend_missing, check_bias
from aim_kernels.trained_trunk import spatial_sub_block
from aim_kernels.weights import (
    AdapterGradients,
    AdapterNeeds,
    AdapterWeights,
    AttentionWeights,
    NormWeights,
    Packing,
    recorded,
    require_gradient,
)
from aim_kernels.wide_activation import gelu, gelu_backward


def spatial_adaptation(
    x: Tensor,
    norm: NormWeights,
    attention: AttentionWeights,
    num_heads: int,
    adapter: AdapterWeights | None = None,
    eps: float = 1e-5,
    memory: Memory = "fast",
    attention_backend: Backend = "auto",
    rotation: Rotation | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """:func:`~aim_kernels.adaptation.spatial_adaptation_reference`, fused: same arguments, same value to rounding.

    Products run in autocast's dtype, else in that of ``qkv_weight``; the residual stream keeps the dtype of ``x``.
    Differentiable in ``x`` and the adapter; where a trunk weight, the table of ``rotation`` or ``bias`` requires a
    gradient, in everything, through :mod:`aim_kernels.trained_trunk`.
    Raises ValueError for an ``attention_backend`` that cannot serve ``x`` and a ``bias`` that is not [1, h, N, N].
    """
    check_memory(memory)
    missing = backend_missing(attention_backend, x.device)
    if missing:
        raise ValueError(missing)
    check_bias(bias, num_heads, x.shape[2])
    if not x.numel():
        return spatial_adaptation_reference(x, norm, attention, num_heads, adapter, eps, rotation, bias)
    if require_gradient(norm, attention, rotation, (bias,)):
        scores = {"attention_backend": attention_backend, "rotation": rotation, "bias": bias}
        return spatial_sub_block(x, norm, attention, num_heads, adapter, eps, **scores)
    dtype = compute_dtype(x, attention.qkv_weight)
    constants = (num_heads, eps, memory, attention_backend, dtype, recorded((x,), adapter))
    operands = _Operands(x, norm, attention, adapter, rotation, bias, *constants)
    return _SpatialAdaptation.apply(*_PACKING.pack(operands))


class _Operands(NamedTuple):
    x: Tensor
    norm: NormWeights
    attention: AttentionWeights
    adapter: AdapterWeights | None
    rotation: Rotation | None
    bias: Tensor | None
    num_heads: int
    eps: float
    memory: Memory
    backend: Backend
    dtype: torch.dtype
    recorded: bool


_PACKING = Packing(_Operands)


class _SpatialAdaptation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *row: Any) -> Tensor:
        o = _PACKING.unpack(row)
        z, mean, rstd, x = layer_norm_to_keep(o.x, o.norm, o.eps, o.dtype, o.dtype, o.recorded)
        qkv = _project(z, o)
        del z
        a, lse = torch.ops.aim.spatial_attention(qkv, o.num_heads, o.backend, o.bias)
        branch = project(a.view(-1, a.shape[-1]), o.adapter, o.attention, o.dtype)
        kept: tuple[Tensor | None, ...] = (None,) * 3
        if o.memory == "fast":
            kept = (qkv, a, lse)
        elif o.memory == "balanced":
            kept = (qkv, None, None)
        _PACKING.keep(ctx, o._replace(x=x), mean, rstd, *kept)
        return residual_add(o.x, branch)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        o, mean, rstd, qkv, a, lse = _PACKING.kept(ctx)
        needs = _PACKING.needs(ctx)
        adapter, norm = copied_for_backward(o.adapter, g), copied_for_backward(o.norm, g)
        if qkv is None:
            z, _, _ = torch.ops.aim.layer_norm(o.x, *norm, o.eps, o.dtype)
            qkv = _project(z, o)
        if a is None:
            a, lse = torch.ops.aim.spatial_attention_recomputed(qkv, o.num_heads, o.backend, o.bias, g)
        sides = branch_gradient(g, o.dtype, needs.adapter.b2)
        da, gradients = project_backward(*sides, a.view(-1, a.shape[-1]), adapter, o.attention, needs.x, needs.adapter)
        dx = None
        if da is not None:
            how = (o.num_heads, o.backend, o.bias)
            dqkv = torch.ops.aim.spatial_attention_backward(da.view(a.shape), qkv, a, lse, *how)
            del sides, da, qkv, a, lse  # what is formed again is held by nobody else
            dqkv = dqkv if o.rotation is None else rotated(dqkv, o.rotation, o.num_heads, inverse=True)
            dz = (dqkv.view(-1, dqkv.shape[-1]) @ o.attention.qkv_weight.to(o.dtype)).view(o.x.shape)
            del dqkv
            dx = torch.ops.aim.layer_norm_backward(dz, o.x, norm.weight, mean, rstd, g)
        return _PACKING.gradients(x=dx, adapter=gradients)


def _project(z: Tensor, o: _Operands) -> Tensor:
    """qkv [B, T, N, 3D] as the attention reads it."""
    qkv = F.linear(z, o.attention.qkv_weight.to(o.dtype), o.attention.qkv_bias.to(o.dtype))
    return qkv if o.rotation is None else rotated(qkv, o.rotation, o.num_heads)


def project(rows: Tensor, adapter: AdapterWeights | None, attention: AttentionWeights, dtype: torch.dtype) -> Tensor:
    """The branch [M, D] of attended ``rows`` [M, D]: the output projection with the adapter on it."""
    out_weight, out_bias = attention.out_weight.to(dtype), attention.out_bias.to(dtype)
    if adapter is None:
        return F.linear(rows, out_weight, out_bias)
    low = cast(adapter, dtype)
    hidden = gelu(F.linear(rows, *fold_projection(adapter, attention, low.w1)))
    out = F.linear(rows, out_weight, out_bias + low.b2)
    return out.addmm_(hidden, low.w2.t())  # addmm would copy it first


def project_backward(
    branch: Tensor,
    db2: Tensor | None,
    rows: Tensor,
    adapter: AdapterWeights | None,
    attention: AttentionWeights,
    needs_rows: bool,
    needs: AdapterNeeds,
) -> tuple[Tensor | None, AdapterGradients]:
    """Gradients of ``rows`` [M, D] and of the adapter's tensors.

    ``branch`` [M, D] is that of the branch, and ``db2`` [D] its sum where the adapter's bias wants it.
    """
    dtype = branch.dtype
    da = branch @ attention.out_weight.to(dtype) if needs_rows else None
    if adapter is None or not (needs_rows or any(needs)):
        return da, AdapterGradients()
    low = cast(adapter, dtype)
    weight, bias = fold_projection(adapter, attention, low.w1)
    u = F.linear(rows, weight, bias)
    du = gelu_backward(branch @ low.w2, u)
    gradients = folded_gradients(adapter, attention, needs, rows, u, du, branch, db2)
    return None if da is None else da.addmm_(du, weight), gradients
