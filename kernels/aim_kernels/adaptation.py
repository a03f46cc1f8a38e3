"""The three sub-blocks of an AIM block in plain torch: temporal, spatial and joint adaptation.

Shapes: the residual stream is ``[B, T, N, D]`` (B clips, T frames, N tokens a frame with CLS first, D width), h heads
of d = D/h channels; weights are records (:mod:`aim_kernels.weights`). ``ln`` (an RMS norm where it has no bias) and
``attn`` are frozen; ``attn`` is ONE attention used over time and over space:

    temporal   x + f · A_T(attn_over_T(A_in(ln_1(x))))            A_in(z) = z when absent
    spatial    x + A_S(attn_over_N(ln_1(x)))
    joint      y = ln_2(x);  x + mlp(y) + f · scale · A_J(y)

    A(z) = W2·gelu(W1·z + b1) + b2   with the exact (erf) GELU; A_in and A_S add their input, A_T and A_J do not
    attn(z) = Wo·softmax(q·kᵀ/√d)·v + bo,  [q; k; v] = Wqkv·z + bqkv
    mlp(y) = Wproj·act(Wfc·y + bfc) + bproj,  act = QuickGELU y·sigmoid(1.702y), the exact GELU, its form by tanh, or
             gated: Wproj·(silu(Wgate·y + bgate)∘(Wfc·y + bfc)) + bproj

``f`` is the droppath factor: a tensor that broadcasts to ``x``, zero where a branch is dropped and 1/keep elsewhere.
Layer norms keep their statistics in fp32 when ``x`` is in half precision.

Every function here takes any floating dtype and any device, and is the truth that fused operators are held against.
Source: Yang et al., AIM: Adapting Image Models for Efficient Video Action Recognition, ICLR 2023, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_kernels.choices import MLPActivation
from aim_kernels.rotation import Rotation, rotation_reference
from aim_kernels.weights import AdapterWeights, AttentionWeights, MLPWeights, NormWeights


def temporal_adaptation_reference(
    x: Tensor,
    norm: NormWeights,
    attention: AttentionWeights,
    num_heads: int,
    adapter: AdapterWeights,
    adapter_in: AdapterWeights | None = None,
    drop: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``x + drop · A_T(attn_over_T(A_in(ln_1(x))))``, [B, T, N, D].

    ``drop`` broadcasts to ``x``, None for nothing dropped.
    """
    z = norm_reference(x, *norm, eps)
    if adapter_in is not None:
        z = z + adapter_reference(z, adapter_in)
    attended = attention_over_time(F.linear(z, attention.qkv_weight, attention.qkv_bias), num_heads)
    branch = adapter_reference(F.linear(attended, attention.out_weight, attention.out_bias), adapter)
    return x + branch if drop is None else x + branch * drop


def spatial_adaptation_reference(
    x: Tensor,
    norm: NormWeights,
    attention: AttentionWeights,
    num_heads: int,
    adapter: AdapterWeights | None = None,
    eps: float = 1e-5,
    rotation: Rotation | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``x + o + A_S(o)`` with ``o = attn_over_N(ln_1(x))``; without the adapter, the trunk's own ``x + o``.

    The spatial branch knows no droppath and no scale. ``rotation`` turns the queries and keys of the last tokens,
    ``bias`` [1, h, N, N] is added to the scores.
    """
    z = norm_reference(x, *norm, eps)
    qkv = F.linear(z, attention.qkv_weight, attention.qkv_bias)
    if rotation is not None:
        qkv = rotation_reference(qkv, rotation.table, num_heads, rotation.interleaved)
    attended = attention_over_space(qkv, num_heads, bias)
    out = F.linear(attended, attention.out_weight, attention.out_bias)
    return x + out if adapter is None else x + (out + adapter_reference(out, adapter))


def joint_adaptation_reference(
    x: Tensor,
    norm: NormWeights,
    mlp: MLPWeights,
    adapter: AdapterWeights | None = None,
    drop: Tensor | None = None,
    scale: float = 1.0,
    activation: MLPActivation = "quick_gelu",
    eps: float = 1e-5,
) -> Tensor:
    """``x + mlp(y) + drop · scale · A_J(y)`` with ``y = ln_2(x)``; without the adapter, ``x + mlp(y)``.

    ``drop`` broadcasts to ``x`` and never touches the MLP.
    """
    y = norm_reference(x, *norm, eps)
    x = x + mlp_reference(y, mlp, activation)
    if adapter is None:
        return x
    branch = adapter_reference(y, adapter) * scale
    return x + branch if drop is None else x + branch * drop


def norm_reference(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The layer norm of ``x`` [..., D], or without a bias its RMS norm, in the dtype of ``x``."""
    if bias is None:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), x.shape[-1:], weight.to(wide), eps).to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def mlp_reference(y: Tensor, mlp: MLPWeights, activation: MLPActivation) -> Tensor:
    """The frozen MLP of ``y`` [..., D], "swiglu" where it is gated."""
    hidden = F.linear(y, mlp.fc_weight, mlp.fc_bias)
    if mlp.gate_weight is None:
        hidden = activate(hidden, activation)
    else:
        hidden = F.silu(F.linear(y, mlp.gate_weight, mlp.gate_bias)) * hidden
    return F.linear(hidden, mlp.proj_weight, mlp.proj_bias)


def adapter_reference(z: Tensor, adapter: AdapterWeights) -> Tensor:
    """``W2·gelu(W1·z + b1) + b2`` over the last axis of ``z`` [..., D], without the skip."""
    return F.linear(F.gelu(F.linear(z, adapter.w1, adapter.b1)), adapter.w2, adapter.b2)


def activate(z: Tensor, activation: MLPActivation) -> Tensor:
    """QuickGELU ``z·sigmoid(1.702 z)`` (the weights OpenAI trained), GELU or its form by tanh, by name, [..., M] each.

    "swiglu" takes the gates and then the values, [..., 2M].
    """
    if activation == "swiglu":
        gate, value = z.chunk(2, -1)
        return F.silu(gate) * value
    if activation == "quick_gelu":
        return z * torch.sigmoid(1.702 * z)
    return F.gelu(z, approximate="tanh" if activation == "gelu_tanh" else "none")


def attention_over_space(qkv: Tensor, num_heads: int, bias: Tensor | None = None) -> Tensor:
    """Self-attention among the N tokens of each frame: packed ``qkv`` [B, T, N, 3D] to [B, T, N, D].

    ``bias`` [1, h, N, N] is added to the scores.
    """
    b, t, n, packed = qkv.shape
    heads = qkv.reshape(b * t, n, 3, num_heads, packed // 3 // num_heads)
    q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [B·T, h, N, d]
    return _attend(q, k, v, bias).transpose(1, 2).reshape(b, t, n, packed // 3)


def attention_over_time(qkv: Tensor, num_heads: int) -> Tensor:
    """Self-attention among the T tokens at each spatial position: packed ``qkv`` [B, T, N, 3D] to [B, T, N, D]."""
    b, t, n, packed = qkv.shape
    q, k, v = qkv.reshape(b, t, n, 3, num_heads, packed // 3 // num_heads).permute(
        3, 0, 2, 4, 1, 5
    )  # each [B, N, h, T, d]
    if qkv.is_cuda:  # the fused kernels take four axes
        q, k, v = (axis.flatten(0, 1) for axis in (q, k, v))
    out = _attend(q, k, v).reshape(b, n, num_heads, t, packed // 3 // num_heads)
    return out.permute(0, 3, 1, 2, 4).reshape(b, t, n, packed // 3)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d + bias)·v over ``[..., L, d]``.

    A GPU takes torch's fused attention. A CPU takes two batched products: forward plus backward at 8 to 197 tokens they
    are level with the fused kernel in fp32 (0.8 to 1.2 ×) and faster in bf16 (1.5 to 9 ×), where its backward is slow.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1).to(v.dtype) @ v
