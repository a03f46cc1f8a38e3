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
from aim_kernels.adapter import adapter_gradients
from aim_kernels.bias_gradients import gelu_gradients
from aim_kernels.choices import Memory
from aim_kernels.formed_adapter import formed_of, plain
from aim_kernels.memory import check_memory, copied_for_backward
from aim_kernels.precision import compute_dtype
from aim_kernels.registration import ops
from aim_kernels.rotation import Rotation, rotated
from aim_kernels.scaled_product import input_gradient, product
from aim_kernels.shared_norms import (
    Ahead,
    Normed,
    add_and_norm,
    arrive,
    constants_of,
    depart,
    left,
    norm_before,
    normed_of,
)
from aim_kernels.spatial_attention import Backend, backend_missing, check_bias
from aim_kernels.trained_trunk import spatial_sub_block
from aim_kernels.weights import (
    NOT_FORMED,
    UNSCALED,
    AdapterGradients,
    AdapterNeeds,
    AdapterWeights,
    AttentionWeights,
    FormedAdapter,
    Keeping,
    NormWeights,
    ScaledRows,
    ScaledTrunk,
    ScaledWeight,
    UnitNorm,
    apply,
    recorded,
    require_gradient,
)
from aim_kernels.wide_activation import gelu


def spatial_adaptation(
    x: Tensor,
    norm: NormWeights,
    attention: AttentionWeights,
    num_heads: int,
    adapter: AdapterWeights | FormedAdapter | None = None,
    eps: float = 1e-5,
    memory: Memory = "fast",
    attention_backend: Backend = "auto",
    rotation: Rotation | None = None,
    bias: Tensor | None = None,
    scaled: ScaledTrunk = UNSCALED,
    before: Ahead | None = None,
    ahead: Ahead | None = None,
) -> Tensor:
    """:func:`~aim_kernels.adaptation.spatial_adaptation_reference`, fused: same arguments, same value to rounding.

    Products run in autocast's dtype, else in that of ``qkv_weight``, those of the weights that are ``scaled`` in eight
    bits; the residual stream keeps the dtype of ``x``. ``before`` and ``ahead`` are the norms of ``x`` and of the
    output, where neighbours share them (:mod:`aim_kernels.shared_norms`).
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
        return spatial_adaptation_reference(x, norm, attention, num_heads, plain(adapter), eps, rotation, bias)
    if require_gradient(norm, attention, rotation and rotation[:1], (bias,)):
        scores = {"attention_backend": attention_backend, "rotation": rotation, "bias": bias, "scaled": scaled}
        return spatial_sub_block(x, norm, attention, num_heads, plain(adapter), eps, **scores)
    dtype = compute_dtype(x, attention.qkv_weight)
    ready = formed_of(adapter, dtype, reads=attention[2:], beside=attention.out_bias)
    normed, unit = normed_of(x, before), isinstance(norm, UnitNorm)
    constants = (rotation, num_heads, eps, memory, attention_backend, dtype, recorded((x,), ready), unit, scaled)
    operands = _Operands(x, normed, ahead, norm, attention, ready, bias, *constants)
    out = apply(_SpatialAdaptation, operands, x, normed and normed.y, *(ready or NOT_FORMED))
    return out if ahead is None else ahead.filled(out)


class _Operands(NamedTuple):
    x: Tensor
    normed: Normed | None
    ahead: Ahead | None
    norm: NormWeights
    attention: AttentionWeights
    adapter: FormedAdapter | None
    bias: Tensor | None
    rotation: Any  # Rotation or None: its table is no tensor of autograd's, nor are those of ScaledTrunk
    num_heads: int
    eps: float
    memory: Memory
    backend: Backend
    dtype: torch.dtype
    recorded: bool
    unit: bool  # whether the norm is a UnitNorm
    scaled: Any  # ScaledTrunk


_KEEPING = Keeping(_Operands, given=2)


class _SpatialAdaptation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: _Operands, *_: Tensor | None) -> Any:
        normed = o.normed or _norm(o, o.norm, o.recorded)
        mean, rstd, kept_x = normed.mean, normed.rstd, normed.kept_of(o.x)
        qkv = _project(normed.rows, o)
        del normed
        a, lse = ops.spatial_attention(qkv, o.num_heads, o.backend, o.bias)
        branch = project(a.view(-1, a.shape[-1]), o.adapter, o.attention, o.scaled.out, o.dtype)
        kept: tuple[Tensor | None, ...] = (None,) * 3
        if o.memory == "fast":
            kept = (qkv, a, lse)
        elif o.memory == "balanced":
            kept = (qkv, None, None)
        out = add_and_norm(o.x, branch, None, None, o.ahead, o.dtype)
        _KEEPING.keep(ctx, kept_x, o, *left(out, o.ahead), mean, rstd, *kept)
        constants_of(ctx, out)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor, dy: Tensor | None = None, *_: None) -> tuple[Any, ...]:
        o, *found, mean, rstd, qkv, a, lse = _KEEPING.kept(ctx)
        _, needs_x, given, *flags = ctx.needs_input_grad
        needs = AdapterNeeds(*flags)
        adapter, norm = copied_for_backward(o.adapter, g), copied_for_backward(o.norm, g)
        if qkv is None:
            qkv = _project(o.x.flatten(0, -2) if o.unit else _norm(o, norm, False).rows, o)
        if a is None:
            a, lse = ops.spatial_attention_recomputed(qkv, o.num_heads, o.backend, o.bias, g)
        scaled = o.scaled.out is not None and needs_x
        g, branch, sums, eight = arrive((g, dy), found, o.dtype, needs.b2, scaled=scaled, packed=given)
        out = (adapter, o.attention, o.scaled.out)
        da, gradients = project_backward(branch, sums, a.view(-1, a.shape[-1]), *out, needs_x, needs, eight)
        del branch, eight
        of_input: tuple[Tensor | None, ...] = (None, None)
        if da is not None:
            how = (o.num_heads, o.backend, o.bias)
            dqkv = ops.spatial_attention_backward(da.view(a.shape), qkv, a, lse, *how)
            del da, qkv, a, lse  # what is formed again is held by nobody else
            dqkv = dqkv if o.rotation is None else rotated(dqkv, o.rotation, o.num_heads, inverse=True)
            frozen = (o.attention.qkv_weight, o.scaled.qkv, o.dtype)
            dz = input_gradient(dqkv.view(-1, dqkv.shape[-1]), *frozen)
            del dqkv
            of_input = depart(given, dz, o.x, norm.weight, mean, rstd, g)
        return None, *of_input, *gradients


def _norm(o: _Operands, norm: NormWeights, recorded: bool) -> Normed:
    scaled = o.scaled.qkv is not None
    return norm_before(o.x, norm, o.eps, o.dtype, recorded, scaled, not scaled, o.unit)


def _project(z: Tensor | ScaledRows, o: _Operands) -> Tensor:
    """qkv [B, T, N, 3D] as the attention reads it."""
    qkv = product(z, o.attention.qkv_weight, o.attention.qkv_bias, o.scaled.qkv, o.dtype).view(*o.x.shape[:-1], -1)
    return qkv if o.rotation is None else rotated(qkv, o.rotation, o.num_heads)


def project(
    rows: Tensor,
    adapter: FormedAdapter | None,
    attention: AttentionWeights,
    scaled: ScaledWeight | None,
    dtype: torch.dtype,
) -> Tensor:
    """The branch [M, D] of attended ``rows`` [M, D]: the output projection with the adapter on it."""
    if adapter is None:
        return product(rows, attention.out_weight, attention.out_bias, scaled, dtype)
    hidden = gelu(F.linear(rows, adapter.w1, adapter.low_b1))
    out = product(rows, attention.out_weight, adapter.low_b2, scaled, dtype)
    return out.addmm_(hidden, adapter.w2.t())  # addmm would copy it first


def project_backward(
    branch: Tensor,
    sums: Tensor | None,
    rows: Tensor,
    adapter: FormedAdapter | None,
    attention: AttentionWeights,
    scaled: ScaledWeight | None,
    needs_rows: bool,
    needs: AdapterNeeds,
    eight: ScaledRows | None = None,
) -> tuple[Tensor | None, AdapterGradients]:
    """Gradients of ``rows`` [M, D] and of the adapter's tensors.

    ``branch`` [M, D] is that of the branch, and ``sums`` [N, D] of its rows, where the adapter's bias wants them;
    ``eight`` is ``branch`` in eight bits, where somebody has it.
    """
    dtype = branch.dtype
    da = input_gradient(eight or branch, attention.out_weight, scaled, dtype) if needs_rows else None
    if adapter is None or not (needs_rows or any(needs)):
        return da, AdapterGradients()
    u = F.linear(rows, adapter.w1, adapter.low_b1)
    du, hidden, biases = gelu_gradients(adapter, branch @ adapter.w2, u, sums)
    gradients = adapter_gradients(adapter, needs, rows, du, hidden, branch, biases)
    return None if da is None else da.addmm_(du, adapter.w1), gradients
