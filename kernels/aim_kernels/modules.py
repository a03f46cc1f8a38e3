"""Drop-in modules: an adapter, attention over time, and a whole AIM block, with the published parameter names.

Shapes: ``[..., T, N, D]``, any leading batch shape: T frames, N tokens a frame (CLS first where the trunk has one), D
width. The mathematics is in :mod:`aim_kernels.adaptation`. A block put into another Transformer looks like this::

    block = AIMBlock(768, 12, adapter_scale=0.5, drop_path=0.1)
    block.load_state_dict(clip_visual.transformer.resblocks[0].state_dict(), strict=False)   # adapters stay at init
    x = block(x)                                                                             # [B, T, N, D]

Frozen parts are frozen (``requires_grad`` False) at construction; ``block.requires_grad_(True)`` trains everything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_kernels import shared_norms
from aim_kernels.adaptation import (
    joint_adaptation_reference,
    spatial_adaptation_reference,
    temporal_adaptation_reference,
)
from aim_kernels.adapter import adapter
from aim_kernels.choices import Activation, AdapterPlace, BlockBackend, DropPathMode, Memory, MLPActivation
from aim_kernels.drop_path import DropPath
from aim_kernels.folded_norms import FoldedNorms
from aim_kernels.formed_adapter import AdapterUse
from aim_kernels.joint_adaptation import joint_adaptation
from aim_kernels.lent import Lent
from aim_kernels.memory import check_memory, run_again
from aim_kernels.precision import compute_dtype
from aim_kernels.shared_norms import Ahead, norm_ahead
from aim_kernels.spatial_adaptation import spatial_adaptation
from aim_kernels.spatial_attention import Backend as AttentionBackend
from aim_kernels.spatial_readout import spatial_readout
from aim_kernels.temporal_adaptation import temporal_adaptation
from aim_kernels.temporal_attention import temporal_attention
from aim_kernels.weights import (
    UNSCALED,
    AdapterWeights,
    AttentionWeights,
    FormedAdapter,
    MLPWeights,
    NormWeights,
    ScaledTrunk,
)

__all__ = ["AIMBlock", "Adapter", "AdapterPlace", "BlockBackend", "DropPathMode", "TemporalAttention"]


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
        return AdapterWeights(*_affine(self.D_fc1), *_affine(self.D_fc2))

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
        return AttentionWeights(self.in_proj_weight, self.in_proj_bias, *_affine(self.out_proj))

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
        for linear, widths in ((self.c_fc, 2), (self.c_proj, 1)):
            nn.init.normal_(linear.weight, std=(widths * self.c_fc.in_features) ** -0.5)
            nn.init.zeros_(linear.bias)

    @property
    def weights(self) -> MLPWeights:
        return MLPWeights(*_affine(self.c_fc), *_affine(self.c_proj))


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

    scaled: ScaledTrunk = UNSCALED  # what of the trunk is there in eight bits, see aim_kernels.frozen_trunk
    held_norms: FoldedNorms | None = None  # from there as well

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
        for name, word, kind in (("backend", backend, BlockBackend), ("activation", activation, Activation)):
            if word not in get_args(kind):
                raise ValueError(f"{name} {word!r} is none of {', '.join(get_args(kind))}")
        if num_tadapter not in (1, 2):
            raise ValueError(f"num_tadapter {num_tadapter} is neither 1 nor 2")
        if unknown := [place for place in adapters if place not in get_args(AdapterPlace)]:
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
        self.T_Adapter_in = Adapter(dim, adapter_ratio) if num_tadapter == 2 and self.T_Adapter else None
        self.MLP_Adapter = Adapter(dim, adapter_ratio, skip=False) if "joint" in adapters else None
        self.drop_path = DropPath(drop_path, drop_path_mode)
        self.lent: Lent | None = None  # while :func:`formed_together` does

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

    @property
    def fused_adapters(self) -> tuple[str, ...]:
        """Of the adapters, those that the fused sub-blocks read."""
        return ("T_Adapter", "T_Adapter_in", "S_Adapter", "MLP_Adapter")

    def adapter_uses(self) -> dict[str, AdapterUse]:
        """These, where there are any, with what stands around them."""
        lent = self.read()
        out, mlp = lent.plain[1][2:], lent.mlp[1]
        around: dict[str, tuple[Any, ...]] = {
            "T_Adapter": (out,),
            "T_Adapter_in": (),
            "S_Adapter": (out, out[1]),
            "MLP_Adapter": (None, mlp.proj_bias, self.adapter_scale, lent.norm),
        }
        modules = ((name, getattr(self, name)) for name in self.fused_adapters)
        return {name: AdapterUse(module.weights, *around[name]) for name, module in modules if module is not None}

    def read(self) -> Lent:
        """What the block is lent, or its weights alone."""
        if self.lent is not None:
            return self.lent
        attention = self.attention_weights()
        return Lent(attention, attention, self.mlp_weights(), self.scaled)

    def adapter(self, name: str) -> AdapterWeights | FormedAdapter | None:
        """The adapter of a name as a sub-block takes it: formed where :func:`formed_together` did it; None without."""
        formed = None if self.lent is None else self.lent.formed.get(name)
        return formed or _weights(getattr(self, name))

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
            # compiled, a checkpoint around an autograd function is forgotten: there each sub-block keeps its own input
            dtype = compute_dtype(clips, self.attention_weights()[1].qkv_weight)
            out = run_again(self._adapting(), clips, *drops, "fast", cls_only, dtype=dtype)
        else:
            out = self._adapt(clips, *drops, self.memory, cls_only)
        return out if out.shape == shape else out.reshape(shape)  # the next block knows it by its identity

    def _adapting(self) -> Callable[..., Tensor]:
        """:meth:`_adapt` with the adapters that are lent now, when they are lent no more as well."""
        formed = {} if self.lent is None else self.lent.formed

        def adapt(*operands: Any) -> Tensor:
            given, self.lent = self.lent, None
            try:
                self.lent = replace(self.read(), formed=formed)  # the weights as they are by then
                return self._adapt(*operands)
            finally:
                self.lent = given

        return adapt

    def _adapt(
        self, x: Tensor, temporal_drop: Tensor | None, joint_drop: Tensor | None, memory: Memory, cls_only: bool
    ) -> Tensor:
        lent, heads = self.read(), self.num_heads
        before, middle, last, ahead = self._norms(x, cls_only, lent)
        if self.T_Adapter is not None:
            adapters: Any = (self.adapter("T_Adapter"), self.adapter("T_Adapter_in"))
            frozen, scaled = (lent.plain, self.scaled) if self.T_Adapter_in else (lent.attention, lent.scaled)
            norms: dict[str, Any] = {"before": before, "ahead": middle, "scaled": scaled}
            norms |= {"drop": temporal_drop, "eps": self.eps, "memory": memory}
            x, before = temporal_adaptation(x, *frozen, heads, *adapters, **norms), middle
        adapter, norms = self.adapter("S_Adapter"), {"before": before, "ahead": last}
        if cls_only:
            x = spatial_readout(x, *lent.plain, heads, adapter, self.eps, scaled=self.scaled, **norms)
        else:
            norms |= {"memory": memory, "attention_backend": self.attention_backend}
            x = spatial_adaptation(x, *lent.attention, heads, adapter, self.eps, scaled=lent.scaled, **norms)
        return self._adapt_mlp(x, joint_drop, memory, lent, before=last, ahead=ahead)

    def _norms(self, x: Tensor, cls_only: bool, lent: Lent) -> tuple[Ahead | None, ...]:
        """The norms before the block, after its temporal and its spatial sub-block, and after it that neighbours share:
        "fast" ones alone, as it takes two gradients at once."""
        if self.memory != "fast" or not shared_norms.gains(x):
            return (None,) * 4
        norm, packs = (lent.plain if cls_only else lent.attention)[0], lent.ahead is not None
        middle = norm_ahead(norm, self.eps, self.scaled.qkv, precise=cls_only)
        last = norm_ahead(lent.mlp[0], self.eps, self.scaled.fc, plain=self.MLP_Adapter is not None, packs=packs)
        return lent.before, middle, last, lent.ahead

    def first_norm(self) -> Ahead | None:
        """The norm of the block's input; None where what is read hangs on ``cls_only``."""
        if self.T_Adapter is None:
            return None
        if self.T_Adapter_in is not None:  # which reads y itself
            return norm_ahead(self.read().plain[0], self.eps, None)
        return norm_ahead(self.read().attention[0], self.eps, self.scaled.qkv)

    def _adapt_mlp(
        self,
        x: Tensor,
        drop: Tensor | None,
        memory: Memory,
        lent: Lent | None = None,
        before: Ahead | None = None,
        ahead: Ahead | None = None,
    ) -> Tensor:
        """The joint sub-block, the last of the block: a lean one holds no hidden state even while it runs again."""
        memory = "lean" if self.memory == "lean" else memory
        joint, lent = {**self._joint(drop), "memory": memory, "before": before, "ahead": ahead}, lent or self.lent
        if lent is None:
            return joint_adaptation(x, *self.mlp_weights(), **joint, scaled=self.scaled)
        return joint_adaptation(x, *lent.mlp, **joint, stacked=lent.stacked, scaled=lent.scaled)

    def _adapt_reference(self, x: Tensor, temporal_drop: Tensor | None, joint_drop: Tensor | None) -> Tensor:
        frozen = (*self.attention_weights(), self.num_heads)
        if self.T_Adapter is not None:
            adapters = (self.T_Adapter.weights, _weights(self.T_Adapter_in))
            x = temporal_adaptation_reference(x, *frozen, *adapters, temporal_drop, self.eps)
        x = spatial_adaptation_reference(x, *frozen, _weights(self.S_Adapter), self.eps)
        return joint_adaptation_reference(x, *self.mlp_weights(), **self._joint(joint_drop))

    def _joint(self, drop: Tensor | None) -> dict[str, Any]:
        """What the joint sub-block takes beside its input and the frozen weights."""
        adapter, scale = self.adapter("MLP_Adapter"), self.adapter_scale
        return {"adapter": adapter, "drop": drop, "scale": scale, "activation": self.activation, "eps": self.eps}

    def attention_weights(self) -> tuple[NormWeights, AttentionWeights]:
        """The frozen attention, over time and over space, and the norm before it."""
        return NormWeights(*_affine(self.ln_1)), self.attn.weights

    def mlp_weights(self) -> tuple[NormWeights, MLPWeights]:
        """The frozen MLP and the norm before it."""
        return NormWeights(*_affine(self.ln_2)), self.mlp.weights

    def norm_weights(self) -> tuple[NormWeights, NormWeights]:
        """The norms before the attention and before the MLP."""
        return NormWeights(*_affine(self.ln_1)), NormWeights(*_affine(self.ln_2))

    def _apply(self, *move: Any, **options: Any) -> Any:
        super()._apply(*move, **options)
        self.scaled = self.scaled.to(next(self.parameters()).device)
        return self

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, adapter_scale={self.adapter_scale:g}, activation={self.activation!r}"


def _affine(module: nn.Linear | nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return module.weight, module.bias


def _weights(module: Adapter | None) -> AdapterWeights | None:
    return None if module is None else module.weights


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads {num_heads} does not divide dim {dim}")


def _as_clips(x: Tensor, dim: int) -> Tensor:
    """``[..., T, N, D]`` to ``[B, T, N, D]``."""
    if x.ndim < 3 or x.shape[-1] != dim:
        raise ValueError(f"expected a tensor [..., T, N, {dim}], got {list(x.shape)}")
    return x if x.ndim == 4 else x[None] if x.ndim == 3 else x.flatten(0, -4)
