"""Drop-in modules: an adapter, attention over time, and a whole AIM block, with the published parameter names.

Shapes: ``[..., T, N, D]``, any leading batch shape: T frames, N tokens a frame (CLS first where the trunk has one), D
width. The mathematics is in :mod:`aim_kernels.adaptation`. A block put into another Transformer looks like this::

    block = AIMBlock(768, 12, adapter_scale=0.5, drop_path=0.1)
    block.load_state_dict(clip_visual.transformer.resblocks[0].state_dict(), strict=False)   # adapters stay at init
    x = block(x)                                                                             # [B, T, N, D]

Frozen parts are frozen (``requires_grad`` False) at construction; ``block.requires_grad_(True)`` trains everything.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_kernels.adaptation import (
    joint_adaptation_reference,
    spatial_adaptation_reference,
    temporal_adaptation_reference,
)
from aim_kernels.adapter import adapter
from aim_kernels.choices import Activation, AdapterPlace, BlockBackend, DropPathMode, Memory, MLPActivation
from aim_kernels.joint_adaptation import joint_adaptation
from aim_kernels.memory import check_memory, run_again
from aim_kernels.precision import compute_dtype
from aim_kernels.spatial_adaptation import spatial_adaptation
from aim_kernels.spatial_attention import Backend as AttentionBackend
from aim_kernels.spatial_readout import spatial_readout
from aim_kernels.temporal_adaptation import temporal_adaptation
from aim_kernels.temporal_attention import temporal_attention
from aim_kernels.weights import AdapterWeights, AttentionWeights, MLPWeights, NormWeights

__all__ = ["AIMBlock", "Adapter", "AdapterPlace", "BlockBackend", "DropPath", "DropPathMode", "TemporalAttention"]


class Adapter(nn.Module):
    """Bottleneck adapter: ``D_fc2(gelu(D_fc1(z)))``, plus ``z`` itself when ``skip``.

    The hidden size is ``int(dim · ratio)``. ``D_fc1`` starts truncated-normal (std 0.02) with zero bias and ``D_fc2``
    at zero, so a new adapter returns zero, or its input where it has the skip.

    Input and output ``[..., dim]``. Raises ValueError when the ratio leaves no hidden unit.
    """

    def __init__(self, dim: int, ratio: float = 0.25, skip: bool = True) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        if hidden < 1:
            raise ValueError(f"adapter_ratio {ratio} of width {dim} leaves no hidden unit: use at least {1 / dim:.4g}")
        self.skip = skip
        self.D_fc1 = nn.Linear(dim, hidden)
        self.D_fc2 = nn.Linear(hidden, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.D_fc1.weight.is_meta:  # no values to draw, and pretending to takes a third of counting a model's costs
            return
        nn.init.trunc_normal_(self.D_fc1.weight, std=0.02)
        for zero in (self.D_fc1.bias, self.D_fc2.weight, self.D_fc2.bias):
            nn.init.zeros_(zero)

    @property
    def weights(self) -> AdapterWeights:
        return AdapterWeights(self.D_fc1.weight, self.D_fc1.bias, self.D_fc2.weight, self.D_fc2.bias)

    def forward(self, z: Tensor) -> Tensor:
        return adapter(z, self.weights, skip=self.skip)

    def extra_repr(self) -> str:
        return f"skip={self.skip}"


class TemporalAttention(nn.Module):
    """Self-attention among the T tokens at each spatial position, with the parameters of ``nn.MultiheadAttention``.

    AIM's reuse of a frozen image attention over time: load the trunk's attention into it (names and shapes are those
    of ``nn.MultiheadAttention(dim, num_heads)``: ``in_proj_weight`` [3D, D], ``in_proj_bias``, ``out_proj``), or give
    it the trunk's own tensors with :meth:`sharing`. Position carries no meaning to it: add a temporal embedding first.

    Input and output ``[..., T, N, D]``. Parameters are frozen at construction. Raises ValueError when ``num_heads``
    does not divide ``dim`` or the input does not end in ``[T, N, dim]``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.dim = dim
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        self.reset_parameters()
        self.requires_grad_(False)

    @classmethod
    def sharing(cls, attention: nn.MultiheadAttention) -> TemporalAttention:
        """One whose parameters ARE those of ``attention``: nothing is copied, what trains in one trains in both."""
        if attention.in_proj_weight is None or attention.in_proj_bias is None:
            raise ValueError("the attention has separate or bias-free q, k, v projections: pack them first")
        with torch.device("meta"):
            shared = cls(attention.embed_dim, attention.num_heads)
        shared.in_proj_weight = attention.in_proj_weight
        shared.in_proj_bias = attention.in_proj_bias
        shared.out_proj = attention.out_proj
        return shared

    def reset_parameters(self) -> None:
        """CLIP's initialisation: normal with std D^-1/2, zero biases."""
        nn.init.normal_(self.in_proj_weight, std=self.dim**-0.5)
        nn.init.normal_(self.out_proj.weight, std=self.dim**-0.5)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.zeros_(self.out_proj.bias)

    @property
    def weights(self) -> AttentionWeights:
        return AttentionWeights(self.in_proj_weight, self.in_proj_bias, self.out_proj.weight, self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        clips = _as_clips(x, self.dim)
        attended = temporal_attention(F.linear(clips, self.in_proj_weight, self.in_proj_bias), self.num_heads)
        return self.out_proj(attended).reshape(x.shape)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"


class MLP(nn.Module):
    """The two projections of a CLIP block's MLP; the block applies them with its activation in between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(dim, hidden)
        self.c_proj = nn.Linear(hidden, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        dim = self.c_fc.in_features
        nn.init.normal_(self.c_fc.weight, std=(2 * dim) ** -0.5)
        nn.init.normal_(self.c_proj.weight, std=dim**-0.5)
        nn.init.zeros_(self.c_fc.bias)
        nn.init.zeros_(self.c_proj.bias)

    @property
    def weights(self) -> MLPWeights:
        return MLPWeights(self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, self.c_proj.bias)


class DropPath(nn.Module):
    """Draws the droppath factor of a residual branch on ``x`` [B, T, N, D]: None when nothing can be dropped, else a
    tensor of zeros (probability ``rate``) and 1/(1 − rate) that broadcasts to ``x``, drawn

    - ``"position"``: once per token position, shared by all clips and frames, [1, 1, N, 1]: what the published ViT-CLIP
      code does, whose tensor is laid out [N, B·T, D];
    - ``"clip"``: once per clip, [B, 1, 1, 1]: what the paper describes;
    - ``"frame"``: once per frame, [B, T, 1, 1]: what the published ViT-ImageNet code does.
    """

    def __init__(self, rate: float = 0.0, mode: DropPathMode = "position") -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path {rate} is not in [0, 1)")
        if mode not in get_args(DropPathMode):
            raise ValueError(f"drop_path_mode {mode!r} is none of {', '.join(get_args(DropPathMode))}")
        self.rate = float(rate)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor | None:
        if not self.training or self.rate == 0.0:
            return None
        b, t, n, _ = x.shape
        shape = {"position": (1, 1, n, 1), "clip": (b, 1, 1, 1), "frame": (b, t, 1, 1)}[self.mode]
        keep = 1.0 - self.rate
        return x.new_empty(shape).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, mode={self.mode!r}"


class AIMBlock(nn.Module):
    """A frozen pre-norm ViT block with AIM's temporal, spatial and joint adaptation.

    Input and output ``[..., T, N, dim]``; any number of frames. Parameter names are the published ones: frozen
    ``attn.in_proj_weight, attn.in_proj_bias, attn.out_proj.*, ln_1.*, ln_2.*, mlp.c_fc.*, mlp.c_proj.*`` (those of
    CLIP's ``transformer.resblocks.N``), trainable ``S_Adapter, T_Adapter, T_Adapter_in, MLP_Adapter``.

    Args:
        dim, num_heads, mlp_ratio: width D, heads, MLP hidden units per channel.
        num_tadapter: 1, or 2 for a second adapter before temporal attention (Something-Something v2).
        adapter_scale: factor of the joint adapter (0.5 on Kinetics and Diving-48, 1 on Something-Something v2).
        adapter_ratio: hidden units per channel of every adapter.
        drop_path, drop_path_mode: rate and form of the drops on the temporal and joint branch, see :class:`DropPath`.
        adapters: which of "spatial", "temporal", "joint" there are. Without "temporal" the block runs no attention
            over time; without any it is the frozen image block applied frame by frame.
        activation: of the frozen MLP, "quick_gelu" (OpenAI's weights), "gelu" or "gelu_tanh".
        eps: of both layer norms.
        backend: "fused" runs the sub-blocks of written-out backward, or where the trunk itself trains, autograd over
            the operators (:mod:`aim_kernels.trained_trunk`); "reference" runs plain torch.
        memory: what a fused block keeps for backward, "fast", "balanced" or "lean" (its input alone); no value changes.
        attention_backend: of the spatial attention, see :mod:`aim_kernels.spatial_attention`.

    Raises ValueError for sizes and names that cannot be, and for an input that does not end in ``[T, N, dim]``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        num_tadapter: int = 1,
        adapter_scale: float = 1.0,
        adapter_ratio: float = 0.25,
        drop_path: float = 0.0,
        drop_path_mode: DropPathMode = "position",
        adapters: Collection[AdapterPlace] = ("spatial", "temporal", "joint"),
        activation: Activation = "quick_gelu",
        eps: float = 1e-5,
        backend: BlockBackend = "fused",
        memory: Memory = "fast",
        attention_backend: AttentionBackend = "auto",
    ) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        check_memory(memory)
        if backend not in get_args(BlockBackend):
            raise ValueError(f"backend {backend!r} is none of {', '.join(get_args(BlockBackend))}")
        if num_tadapter not in (1, 2):
            raise ValueError(f"num_tadapter {num_tadapter} is neither 1 nor 2")
        if activation not in get_args(Activation):
            raise ValueError(f"activation {activation!r} is none of {', '.join(get_args(Activation))}")
        unknown = [place for place in adapters if place not in get_args(AdapterPlace)]
        if unknown:
            raise ValueError(f"adapters {unknown} are none of {', '.join(get_args(AdapterPlace))}")
        self.dim = dim
        self.num_heads = num_heads
        self.adapter_scale = float(adapter_scale)
        self.activation: MLPActivation = activation
        self.backend = backend
        self.memory = memory
        self.attention_backend = attention_backend
        self.eps = eps
        self._make_trunk(int(dim * mlp_ratio))
        self.reset_parameters()
        self.requires_grad_(False)
        self.S_Adapter = Adapter(dim, adapter_ratio, skip=True) if "spatial" in adapters else None
        self.T_Adapter = Adapter(dim, adapter_ratio, skip=False) if "temporal" in adapters else None
        second = num_tadapter == 2 and "temporal" in adapters
        self.T_Adapter_in = Adapter(dim, adapter_ratio, skip=True) if second else None
        self.MLP_Adapter = Adapter(dim, adapter_ratio, skip=False) if "joint" in adapters else None
        self.drop_path = DropPath(drop_path, drop_path_mode)

    def _make_trunk(self, hidden: int) -> None:
        """The frozen part, under the trunk's names; :meth:`attention_weights` and :meth:`mlp_weights` hand it on."""
        self.ln_1 = nn.LayerNorm(self.dim, eps=self.eps)
        self.attn = TemporalAttention(self.dim, self.num_heads)
        self.ln_2 = nn.LayerNorm(self.dim, eps=self.eps)
        self.mlp = MLP(self.dim, hidden)

    def reset_parameters(self) -> None:
        """CLIP's initialisation of the frozen part: normal with std D^-1/2 and (2D)^-1/2, zero biases, unit norms."""
        self.ln_1.reset_parameters()
        self.attn.reset_parameters()
        self.ln_2.reset_parameters()
        self.mlp.reset_parameters()

    def forward(self, x: Tensor, cls_only: bool = False) -> Tensor:
        """``[..., T, N, dim]`` to itself; with ``cls_only`` to ``[..., T, 1, dim]``, the first token of each frame.

        A fused last block whose class token alone is read saves with it four fifths of its work; the value and what
        droppath draws are the same. "reference" computes all tokens.
        """
        clips = _as_clips(x, self.dim)
        shape = (*x.shape[:-2], 1, self.dim) if cls_only else x.shape
        temporal_drop = None if self.T_Adapter is None else self.drop_path(clips)
        joint_drop = None if self.MLP_Adapter is None else self.drop_path(clips)
        if self.backend == "reference":
            out = self._adapt_reference(clips, temporal_drop, joint_drop)
            return (out[:, :, :1] if cls_only else out).reshape(shape)
        drops = (temporal_drop, joint_drop[:, :, :1] if cls_only and joint_drop is not None else joint_drop)
        lean = self.memory == "lean" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if lean and (x.requires_grad or any(parameter.requires_grad for parameter in self.parameters())):
            # A compiler forgets the checkpoint around an autograd function and would keep everything: there each
            # sub-block keeps its own input.
            dtype = compute_dtype(clips, self.attention_weights()[1].qkv_weight)
            out = run_again(self._adapt, clips, *drops, "fast", cls_only, dtype=dtype)
        else:
            out = self._adapt(clips, *drops, self.memory, cls_only)
        return out.reshape(shape)

    def _adapt(
        self, x: Tensor, temporal_drop: Tensor | None, joint_drop: Tensor | None, memory: Memory, cls_only: bool
    ) -> Tensor:
        frozen = (*self.attention_weights(), self.num_heads)
        if self.T_Adapter is not None:
            adapters = (self.T_Adapter.weights, _weights(self.T_Adapter_in))
            x = temporal_adaptation(x, *frozen, *adapters, temporal_drop, self.eps, memory)
        adapter = _weights(self.S_Adapter)
        if cls_only:
            x = spatial_readout(x, *frozen, adapter, self.eps)
        else:
            x = spatial_adaptation(x, *frozen, adapter, self.eps, memory, self.attention_backend)
        return self._adapt_mlp(x, joint_drop, memory)

    def _adapt_mlp(self, x: Tensor, drop: Tensor | None, memory: Memory) -> Tensor:
        """The joint sub-block, the last of the block: a lean one holds no hidden state even while it runs again."""
        memory = "lean" if self.memory == "lean" else memory
        return joint_adaptation(x, *self.mlp_weights(), **self._joint(drop), memory=memory)

    def _adapt_reference(self, x: Tensor, temporal_drop: Tensor | None, joint_drop: Tensor | None) -> Tensor:
        frozen = (*self.attention_weights(), self.num_heads)
        if self.T_Adapter is not None:
            adapters = (self.T_Adapter.weights, _weights(self.T_Adapter_in))
            x = temporal_adaptation_reference(x, *frozen, *adapters, temporal_drop, self.eps)
        x = spatial_adaptation_reference(x, *frozen, _weights(self.S_Adapter), self.eps)
        return joint_adaptation_reference(x, *self.mlp_weights(), **self._joint(joint_drop))

    def _joint(self, drop: Tensor | None) -> dict[str, Any]:
        """What the joint sub-block takes beside its input and the frozen weights."""
        adapter, scale = _weights(self.MLP_Adapter), self.adapter_scale
        return {"adapter": adapter, "drop": drop, "scale": scale, "activation": self.activation, "eps": self.eps}

    def attention_weights(self) -> tuple[NormWeights, AttentionWeights]:
        """The frozen attention, over time and over space, and the norm before it."""
        return NormWeights(self.ln_1.weight, self.ln_1.bias), self.attn.weights

    def mlp_weights(self) -> tuple[NormWeights, MLPWeights]:
        """The frozen MLP and the norm before it."""
        return NormWeights(self.ln_2.weight, self.ln_2.bias), self.mlp.weights

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, adapter_scale={self.adapter_scale:g}, activation={self.activation!r}"


def _weights(module: Adapter | None) -> AdapterWeights | None:
    return None if module is None else module.weights


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads {num_heads} does not divide dim {dim}")


def _as_clips(x: Tensor, dim: int) -> Tensor:
    """``[..., T, N, D]`` to ``[B, T, N, D]``."""
    if x.ndim < 3 or x.shape[-1] != dim:
        raise ValueError(f"expected a tensor [..., T, N, {dim}], got {list(x.shape)}")
    return x[None] if x.ndim == 3 else x.flatten(0, -4)
