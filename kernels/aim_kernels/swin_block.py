"""A Swin block with AIM's adapters: frozen window attention, used over time as well where the window is not shifted.

Shapes: x [B, T, N, D], N = side² tokens of a frame in raster order. ``norm1`` and ``attn`` are frozen:

    temporal   x + f · A_T(attn_over_T(norm1(x)))                     blocks that adapt time
    spatial    o = attn_in_windows(norm1(x));  x + o + A_S2(o)
    joint      y = norm2(x);  x + mlp(y) + f · scale · A_S(y)

    attn(z) = Wo·softmax(q·kᵀ/√d + bias)·v + bo,  [q; k; v] = Wqkv·z + bqkv

Windows of w × w tokens, shifted by s: their bias is relative_position_bias_table [(2w−1)², h] at the relative position,
and −100 between tokens that the cyclic shift brought together. Over time, at each spatial position, the same
projections have temporal_position_bias_table [2T−1, h] at i − j + T − 1. Adapters and ``f`` are those of
:mod:`aim_kernels.adaptation`; the MLP has the exact GELU. Names are the published ones: A_S is ``S_Adapter``, A_S2
``S_Adapter2``. Sources: Liu et al., Swin Transformer, ICCV 2021; AIM (ICLR 2023) and its public implementation.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, get_args

import torch
from torch import Tensor, nn

from aim_kernels.adaptation import adapter_reference, joint_adaptation_reference
from aim_kernels.adapter import adapter
from aim_kernels.choices import AdapterPlace, BlockBackend, DropPathMode, Memory
from aim_kernels.drop_path import DropPath
from aim_kernels.formed_adapter import fold_projection
from aim_kernels.group_attention import group_attention, group_attention_reference
from aim_kernels.joint_adaptation import joint_adaptation
from aim_kernels.layer_norm import layer_norm
from aim_kernels.memory import check_memory, run_again
from aim_kernels.modules import Adapter
from aim_kernels.precision import compute_dtype
from aim_kernels.scaled_product import frozen_linear
from aim_kernels.spatial_attention import Backend as AttentionBackend
from aim_kernels.weights import UNSCALED, AdapterWeights, AttentionWeights, MLPWeights, NormWeights, ScaledTrunk


class AIMSwinBlock(nn.Module):
    """A frozen Swin block with temporal, spatial and joint adapters: ``[B, T, N, dim]`` to the same.

    Args:
        dim, num_heads, mlp_ratio: width D, heads, MLP hidden units per channel.
        side: tokens along each side of a frame, N = side².
        num_steps: T, the length of the temporal bias.
        window_size: tokens along each side of a window; a frame no larger than it is one window.
        shifted: whether windows are shifted by half their size (not where a frame is one window).
        adapts_time: whether the block has the temporal adaptation, where ``adapters`` name it.
        adapter_scale, adapter_ratio, drop_path, drop_path_mode, adapters: as in :class:`aim_kernels.AIMBlock`.
        backend: "fused" runs the operators; "reference" plain torch. memory: what a fused block keeps for backward:
            "fast"; "balanced", the MLP again; "lean", its input alone. No value changes.
        attention_backend: of both attentions, see :mod:`aim_kernels.group_attention`.

    What AIM adds trains; the rest is frozen at construction. Raises ValueError for sizes and names that cannot be, and
    for an input of another shape.
    """

    attn_mask: Tensor
    window_table: Tensor
    time_table: Tensor
    scaled: ScaledTrunk = UNSCALED  # as in AIMBlock

    def __init__(
        self,
        dim: int,
        num_heads: int,
        side: int,
        num_steps: int,
        window_size: int = 7,
        shifted: bool = False,
        adapts_time: bool = True,
        mlp_ratio: float = 4.0,
        adapter_scale: float = 0.5,
        adapter_ratio: float = 0.25,
        drop_path: float = 0.0,
        drop_path_mode: DropPathMode = "clip",
        adapters: Collection[AdapterPlace] = ("spatial", "temporal", "joint"),
        eps: float = 1e-5,
        backend: BlockBackend = "fused",
        memory: Memory = "fast",
        attention_backend: AttentionBackend = "auto",
    ) -> None:
        super().__init__()
        check_memory(memory)
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide dim {dim}")
        if backend not in get_args(BlockBackend):
            raise ValueError(f"backend {backend!r} is none of {', '.join(get_args(BlockBackend))}")
        unknown = [place for place in adapters if place not in get_args(AdapterPlace)]
        if unknown:
            raise ValueError(f"adapters {unknown} are none of {', '.join(get_args(AdapterPlace))}")
        window = min(window_size, side)
        if side % window:
            raise ValueError(f"a frame of {side} × {side} tokens has no whole number of windows of {window} × {window}")
        self.dim = dim
        self.num_heads = num_heads
        self.side = side
        self.num_steps = num_steps
        self.window_size = window
        self.shift = window // 2 if shifted and side > window else 0
        self.adapter_scale = float(adapter_scale)
        self.backend = backend
        self.memory = memory
        self.attention_backend = attention_backend
        over_time = adapts_time and "temporal" in adapters
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = WindowAttention(dim, num_heads, window, num_steps if over_time else 0)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        windows = window_tokens(side, window, self.shift)
        self.register_buffer("window_table", windows, persistent=False)
        if over_time:
            steps = torch.arange(num_steps, dtype=torch.int32) * side**2
            table = torch.arange(side**2, dtype=torch.int32)[:, None] + steps  # [N, T]
            self.register_buffer("time_table", table, persistent=False)
        if self.shift:
            self.register_buffer("attn_mask", shift_mask(side, window, self.shift))
        self.reset_parameters()
        self.requires_grad_(False)
        self.T_Adapter = Adapter(dim, adapter_ratio, skip=False) if over_time else None
        self.S_Adapter2 = Adapter(dim, adapter_ratio, skip=True) if "spatial" in adapters else None
        self.S_Adapter = Adapter(dim, adapter_ratio, skip=False) if "joint" in adapters else None
        if self.attn.temporal_position_bias_table is not None:
            self.attn.temporal_position_bias_table.requires_grad_(True)
        self.drop_path = DropPath(drop_path, drop_path_mode)

    def reset_parameters(self) -> None:
        """Swin's initialisation of the trunk: normal of std 0.02 (it cuts at ±2, no draw), zero biases, unit norms."""
        if self.norm1.weight.is_meta:
            return
        self.norm1.reset_parameters()
        self.norm2.reset_parameters()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.attn.reset_tables()

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != (self.num_steps, self.side**2, self.dim):
            right = f"[B, {self.num_steps}, {self.side**2}, {self.dim}]"
            raise ValueError(f"expected a tensor {right}, got {list(x.shape)}")
        drops = (
            None if self.T_Adapter is None else self.drop_path(x),
            None if self.S_Adapter is None else self.drop_path(x),
        )
        if self.backend == "reference":
            return self._adapt_reference(x, *drops)
        if self.memory == "lean" and torch.is_grad_enabled():
            return run_again(self._adapt, x, *drops, "fast", dtype=compute_dtype(x, self.attn.qkv.weight))
        return self._adapt(x, *drops, self.memory)

    def _adapt(self, x: Tensor, temporal_drop: Tensor | None, joint_drop: Tensor | None, memory: Memory) -> Tensor:
        attn, backend = self.attn, self.attention_backend
        dtype = compute_dtype(x, attn.qkv.weight)
        if self.T_Adapter is not None:
            qkv = self._project(x, dtype)
            a = group_attention(qkv.flatten(1, 2), self.time_table, attn.temporal_bias(), self.num_heads, backend)
            # The adapter has no skip, so it swallows the output projection.
            weights = self.T_Adapter.weights
            folded = fold_projection(weights, attn.weights[2:], weights.w1.to(dtype))
            swallowing = AdapterWeights(*folded, weights.w2, weights.b2)
            x = adapter(a.view(x.shape), swallowing, residual=x, factor=temporal_drop)
        qkv = self._project(x, dtype)
        a = group_attention(qkv.flatten(0, 1), self.window_table, self._window_bias(), self.num_heads, backend)
        o = frozen_linear(a.view(x.shape), attn.proj.weight.to(dtype), attn.proj.bias.to(dtype), self.scaled.out)
        if self.S_Adapter2 is None:
            x = x + o
        else:
            x = adapter(o, self.S_Adapter2.weights, skip=True, residual=x)
        memory = "lean" if self.memory == "lean" else memory  # no hidden state even while the block runs again
        joint = self._joint(joint_drop)
        return joint_adaptation(x, *self.mlp_weights(), **joint, memory=memory, scaled=self.scaled)

    def _adapt_reference(self, x: Tensor, temporal_drop: Tensor | None, joint_drop: Tensor | None) -> Tensor:
        attn = self.attn
        if self.T_Adapter is not None:
            qkv = attn.qkv(self.norm1(x)).flatten(1, 2)
            a = group_attention_reference(qkv, self.time_table, attn.temporal_bias(), self.num_heads)
            branch = adapter_reference(attn.proj(a.view(x.shape)), self.T_Adapter.weights)
            x = x + branch if temporal_drop is None else x + branch * temporal_drop
        qkv = attn.qkv(self.norm1(x)).flatten(0, 1)
        a = group_attention_reference(qkv, self.window_table, self._window_bias(), self.num_heads)
        o = attn.proj(a.view(x.shape))
        x = x + (o if self.S_Adapter2 is None else o + adapter_reference(o, self.S_Adapter2.weights))
        return joint_adaptation_reference(x, *self.mlp_weights(), **self._joint(joint_drop))

    def _joint(self, drop: Tensor | None) -> dict[str, Any]:
        """What the joint sub-block takes beside its input and the frozen weights."""
        adapter, scale = None if self.S_Adapter is None else self.S_Adapter.weights, self.adapter_scale
        return {"adapter": adapter, "drop": drop, "scale": scale, "activation": "gelu", "eps": self.norm2.eps}

    def _project(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Packed qkv of the normalised tokens, [B, T, N, 3D]."""
        z = layer_norm(x, self.norm1.weight, self.norm1.bias, self.norm1.eps, dtype)
        qkv = self.attn.qkv
        return frozen_linear(z, qkv.weight.to(dtype), qkv.bias.to(dtype), self.scaled.qkv)

    def _window_bias(self) -> Tensor:
        """[1, h, w², w²], or one of each window, [N / w², h, w², w²], where they are shifted."""
        bias = self.attn.window_bias()
        return bias + self.attn_mask[:, None] if self.shift else bias

    def mlp_weights(self) -> tuple[NormWeights, MLPWeights]:
        """The frozen MLP and the norm before it."""
        fc, proj, norm = self.mlp.fc1, self.mlp.fc2, NormWeights(self.norm2.weight, self.norm2.bias)
        return norm, MLPWeights(fc.weight, fc.bias, proj.weight, proj.bias)

    def _apply(self, *move: Any, **options: Any) -> Any:
        super()._apply(*move, **options)
        self.scaled = self.scaled.to(next(self.parameters()).device)
        return self

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window_size={self.window_size}, shift={self.shift}"


class WindowAttention(nn.Module):
    """The parameters of Swin's window attention, and of its use over ``num_steps`` steps of time (0 for none)."""

    relative_position_index: Tensor
    t_relative_coords: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int, num_steps: int = 0) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_positions(window_size))
        self.temporal_position_bias_table: nn.Parameter | None = None
        if num_steps:
            self.temporal_position_bias_table = nn.Parameter(torch.empty(2 * num_steps - 1, num_heads))
            steps = torch.arange(num_steps)
            self.register_buffer("t_relative_coords", (steps[:, None] - steps + num_steps - 1).flatten())

    def reset_tables(self) -> None:
        for table in (self.relative_position_bias_table, self.temporal_position_bias_table):
            if table is not None:
                nn.init.normal_(table, std=0.02)

    @property
    def weights(self) -> AttentionWeights:
        return AttentionWeights(self.qkv.weight, self.qkv.bias, self.proj.weight, self.proj.bias)

    def window_bias(self) -> Tensor:
        """[1, h, w², w²]"""
        return _look_up(self.relative_position_bias_table, self.relative_position_index.flatten())

    def temporal_bias(self) -> Tensor:
        """[1, h, T, T]"""
        if self.temporal_position_bias_table is None:
            raise RuntimeError("this block does not adapt time")
        return _look_up(self.temporal_position_bias_table, self.t_relative_coords)


class MLP(nn.Module):
    """The two projections of a Swin block's MLP; the block applies them with the exact GELU in between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)


def relative_positions(window: int) -> Tensor:
    """Row of the bias table for every pair of tokens of a window, int64 [w², w²]."""
    places = torch.arange(window)
    apart = places[:, None] - places + window - 1  # [w, w]
    pairs = apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]
    return pairs.reshape(window**2, window**2)


def window_tokens(side: int, window: int, shift: int) -> Tensor:
    """The tokens of each window of a frame rolled by ``-shift`` along both sides, int32 [(side / w)², w²]."""
    tokens = torch.arange(side**2, dtype=torch.int32).view(side, side).roll((-shift, -shift), (0, 1))
    return _partition(tokens, window)


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """0 between tokens of a shifted window that are neighbours in the frame, −100 between others, [(side / w)², w², w²]

    A rolled frame's last rows and columns came from the other edge.
    """
    part = (torch.arange(side) >= side - window).long() + (torch.arange(side) >= side - shift).long()
    parts = _partition(part[:, None] * 3 + part, window)
    return torch.where(parts[:, None] == parts[:, :, None], 0.0, -100.0)


def _partition(frame: Tensor, window: int) -> Tensor:
    count = len(frame) // window
    return frame.view(count, window, count, window).transpose(1, 2).reshape(count**2, window**2).contiguous()


def _look_up(table: Tensor, rows: Tensor) -> Tensor:
    length = int(len(rows) ** 0.5 + 0.5)
    wide = torch.promote_types(table.dtype, torch.float32)
    return table.to(wide)[rows].view(length, length, -1).permute(2, 0, 1).contiguous()[None]
