"""A frozen pre-norm block of timm's, whatever it has beyond a plain one, on the fused operators where they allow.

    z = n1(x);  [q; k; v] = Wqkv z + b;  q, k ← nq(q), nk(k);  q, k ← R_p q, R_p k    (patches, over space only)
    a = softmax(q kᵀ/√d + B (over space only)) v;   o = γ1·(Wo·ni(a)·gate(z) + bo)
    y = n2(x);  m = γ2·mlp(y)

Of the T tokens at one position R_p is the same rotation, and (R_p q)·(R_p k) = q·k; a relative bias is then one
constant a head, which softmax ignores: over time both are left out, exactly. Folded into frozen tensors: LayerScale,
separate queries, keys and values, grouped queries, biases that are not there. Each sub-block runs fused where this is
all that it has, else in autograd around the attention operators:

    attention    no norm or gate inside, over time and over space
    MLP          no norm inside; GELU, exact or by tanh, QuickGELU, or gated by SiLU (SwiGLU)

Source: timm's ``vision_transformer``, ``eva``, ``beit`` and ``vision_transformer_relpos``.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, AttentionRope, GluMlp, Mlp, RmsNorm, SwiGLU
from timm.models import beit, vision_transformer, vision_transformer_relpos
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor, nn

from aim_fast.models.block import Before, Change, FrozenBlock, Seen, attention_over, dropped
from aim_kernels.adaptation import norm_reference
from aim_kernels.choices import Memory, MLPActivation
from aim_kernels.layer_norm import layer_norm
from aim_kernels.precision import compute_dtype
from aim_kernels.rotation import Rotation, rotated, rotation_reference
from aim_kernels.scaled_product import frozen_linear
from aim_kernels.spatial_adaptation import spatial_adaptation
from aim_kernels.spatial_readout import spatial_readout
from aim_kernels.temporal_adaptation import temporal_adaptation
from aim_kernels.weights import AttentionWeights, MLPWeights, NormWeights

BLOCKS = (vision_transformer.Block, EvaBlock, beit.Block, vision_transformer_relpos.RelPosBlock)
ATTENTIONS = (Attention, AttentionRope, EvaAttention, beit.Attention, vision_transformer_relpos.RelPosAttention)
NORMS = (nn.LayerNorm, RmsNorm)
MLPS = (Mlp, GluMlp, SwiGLU)

# Of classes of timm's that are not built here, what they have.
_OTHERS = {
    "ResPostBlock": "norms after the residual branches (res-post-norm)",
    "EvaBlockPostNorm": "norms after attention and MLP instead of before",
    "ResPostRelPosBlock": "norms after the residual branches (res-post-norm)",
    "ParallelScalingBlock": "attention and MLP in parallel",
    "ParallelThingsBlock": "attention and MLPs in parallel",
    "DiffParallelScalingBlock": "attention and MLP in parallel",
    "LayerScaleBlockClassAttn": "class attention and talking heads (CaiT)",
    "LayerScaleBlock": "class attention and talking heads (CaiT)",
    "XCABlock": "cross-covariance attention (XCiT)",
}


def why_not(block: nn.Module) -> str | None:
    """What of a block is not built here, in the field's words."""
    kind = type(block).__name__
    if type(block) not in BLOCKS:
        return _OTHERS.get(kind, f"blocks of its own ({kind})")
    parts: Any = block
    if type(parts.attn) not in ATTENTIONS:
        return f"attention of its own ({type(parts.attn).__name__})"
    norms = (parts.norm1, parts.norm2)
    if not all(isinstance(norm, NORMS) for norm in norms):
        return f"norms of its own ({type(parts.norm1).__name__})"
    if any(norm.weight is None for norm in norms):
        return "norms without weight or bias"
    if type(parts.mlp) not in MLPS:
        return f"MLPs of its own ({type(parts.mlp).__name__})"
    if parts.attn.proj.in_features != parts.attn.proj.out_features:
        return "attention of another width than its tokens"
    return None


def activation_of(mlp: Any) -> MLPActivation | None:
    """The activation of an MLP of timm's among those that the operators have, None for another."""
    kind = type(mlp.act).__name__
    if type(mlp) is not Mlp:
        return "swiglu" if kind == "SiLU" else None
    if kind == "GELUTanh" or (kind == "GELU" and getattr(mlp.act, "approximate", "none") == "tanh"):
        return "gelu_tanh"
    return "gelu" if kind == "GELU" else "quick_gelu" if kind == "QuickGELU" else None


class RotationTable:
    """The rotation of a trunk's queries and keys, of the P patches, from timm's sines and cosines."""

    def __init__(self, trunk: Any) -> None:
        self.trunk = trunk
        self.half = getattr(trunk.blocks[0].attn, "rotate_half", False)
        self.kept: Rotation | None = None
        self.refresh()

    def refresh(self) -> None:
        """Makes the table again that timm would make for every picture: for another device or dtype."""
        rope = getattr(self.trunk, "rope", None)
        if rope is None or getattr(rope, "feat_shape", None) is not None or next(rope.parameters(), None) is not None:
            return
        with torch.inference_mode(False), torch.no_grad():
            self.kept = self._once(rope.get_embed(shape=self.trunk.patch_embed.grid_size))

    def of_block(self, number: int) -> Rotation | None:
        """Of ``[P, d]``, or ``[h, P, d]`` where block ``number`` has one of its own; None without a rotation."""
        rope = getattr(self.trunk, "rope", None)
        if rope is None or self.kept is not None:
            return self.kept
        cached = getattr(rope, "feat_shape", None) is not None
        table = rope.get_embed() if cached else rope.get_embed(shape=self.trunk.patch_embed.grid_size)
        return self._once(table[number] if getattr(self.trunk, "rope_mixed", False) else table)

    def _once(self, table: Tensor) -> Rotation:
        """timm's table has each sine and cosine for both of its channels, ``[..., 2d]``."""
        d = table.shape[-1] // 2
        once = [part[..., : d // 2] if self.half else part[..., ::2] for part in table.chunk(2, -1)]
        return Rotation(torch.cat(once, -1), interleaved=not self.half)


class Place:
    """Where a block stands in its trunk: what rotates its queries and keys over space, and their relative bias."""

    def __init__(self, trunk: nn.Module, table: RotationTable, number: int) -> None:
        self.trunk: Any = trunk
        self._table = table
        self.number = number

    def rotation(self) -> Rotation | None:
        """What turns the patches' queries and keys."""
        return self._table.of_block(self.number)

    def bias(self, attention: Any) -> Tensor | None:
        """Relative position bias ``[1, h, N, N]``, of the block's own table and of one that all share."""
        found = []
        if getattr(attention, "relative_position_bias_table", None) is not None:
            found.append(attention._get_rel_pos_bias())
        if getattr(attention, "rel_pos", None) is not None:
            found.append(attention.rel_pos.get_bias())
        if getattr(self.trunk, "rel_pos_bias", None) is not None:
            found.append(self.trunk.rel_pos_bias())
        if getattr(self.trunk, "shared_rel_pos", None) is not None:
            found.append(self.trunk.shared_rel_pos.get_bias())
        return sum(found[1:], found[0]) if found else None


class TimmBlock(FrozenBlock):
    """One block of timm's with adapters: ``[B, T, N, D]`` to itself, timm's modules under timm's names.

    ``frozen``: timm's block, whose modules are taken over; ``place``: in its trunk; the other arguments are those of
    :class:`aim_kernels.AIMBlock`.
    """

    attn: Any
    mlp: Any
    norm1: Any
    norm2: Any

    def __init__(self, frozen: nn.Module, place: Place, dim: int, **arguments: Any) -> None:
        self._frozen = (frozen,)  # before the base class, which makes the trunk out of it; hidden from its modules
        parts: Any = frozen
        known = activation_of(parts.mlp)
        self.place = place
        super().__init__(dim, parts.attn.num_heads, eps=parts.norm1.eps, **arguments)
        del self._frozen
        self.activation = known or "gelu"
        self.gate = _given(self.attn, "gate")
        inner = [_given(self.attn, name) for name in ("q_norm", "norm", "gate")]
        self.plain_attention = inner == [None] * 3
        self.plain_mlp = known is not None and _given(self.mlp, "norm") is None

    def _make_trunk(self, hidden: int) -> None:
        for name, module in self._frozen[0].named_children():
            if not name.startswith("drop_path"):
                self.add_module(name, module)
        for name, parameter in self._frozen[0].named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    def reset_parameters(self) -> None:
        """timm has initialised its modules."""

    def attention_weights(self) -> tuple[NormWeights, AttentionWeights]:
        a = self.attn
        if _given(a, "qkv") is not None:
            weight, bias = a.qkv.weight, a.qkv.bias
            if _given(a, "q_bias") is not None:
                bias = torch.cat([a.q_bias, torch.zeros_like(a.v_bias), a.v_bias])
            bias = weight.new_zeros(len(weight)) if bias is None else bias
        else:
            groups = getattr(a, "num_kv_groups", 1)
            parts = [(a.q_proj, 1), (a.k_proj, groups), (a.v_proj, groups)]
            weight = torch.cat([_repeat(linear.weight, times, a.head_dim) for linear, times in parts])
            bias = torch.cat([_repeat(_bias(linear), times, a.head_dim) for linear, times in parts])
        out = _scaled(a.proj, self._factor("ls1", "gamma_1"))
        return _affine(self.norm1), AttentionWeights(weight, bias, *out)

    def norm_weights(self) -> tuple[NormWeights, NormWeights]:
        return _affine(self.norm1), _affine(self.norm2)

    def mlp_weights(self) -> tuple[NormWeights, MLPWeights]:
        mlp, out = self.mlp, _scaled(self.mlp.fc2, self._factor("ls2", "gamma_2"))
        norm = _affine(self.norm2)
        if type(mlp) is Mlp:
            return norm, MLPWeights(mlp.fc1.weight, _bias(mlp.fc1), *out)
        if type(mlp) is SwiGLU:
            gate, value = ((linear.weight, _bias(linear)) for linear in (mlp.fc1_g, mlp.fc1_x))
        else:
            gate, value = zip(*(part.chunk(2) for part in (mlp.fc1.weight, _bias(mlp.fc1))))
            gate, value = (value, gate) if mlp.gate_last else (gate, value)
        return norm, MLPWeights(*value, *out, *gate)

    def _factor(self, *names: str) -> Tensor | None:
        """LayerScale's factors ``[D]``, where there are any."""
        scale = _given(self, *names)
        return scale if scale is None or isinstance(scale, Tensor) else scale.gamma

    def attend(
        self,
        x: Tensor,
        over_time: bool = False,
        cls_only: bool = False,
        before: Before | None = None,
        change: Change | None = None,
        seen: Seen | None = None,
    ) -> Tensor:
        z = self._normed(self.norm1, x)
        return self._branch(z if before is None else before(z), over_time, cls_only, change, seen)

    def expand(self, x: Tensor, memory: Memory = "fast", before: Before | None = None) -> Tensor:
        if self.plain_mlp:
            return super().expand(x, memory, before)
        y = self._normed(self.norm2, x)
        return self._mlp(y if before is None else before(y))

    def _mlp(self, y: Tensor) -> Tensor:
        out, factor = self.mlp(y), self._factor("ls2", "gamma_2")
        return out if factor is None else out * factor.to(out.dtype)

    @property
    def fused_adapters(self) -> tuple[str, ...]:
        names = super().fused_adapters
        return tuple(name for name in names if (self.plain_mlp if name == "MLP_Adapter" else self.plain_attention))

    def _adapt(
        self, x: Tensor, temporal_drop: Tensor | None, joint_drop: Tensor | None, memory: Memory, cls_only: bool
    ) -> Tensor:
        frozen = (*self.attention_weights(), self.num_heads)
        if self.T_Adapter is not None:
            if self.plain_attention:
                adapter: Any = self.adapter("T_Adapter")
                before = self.adapter("T_Adapter_in")
                x = temporal_adaptation(x, *frozen, adapter, before, temporal_drop, self.eps, memory, self.scaled)
            else:
                x = self._over_time(x, temporal_drop)
        adapter = self.adapter("S_Adapter")
        if not self.plain_attention:
            x = self._over_space(x, cls_only)
        elif cls_only:
            adapter = None if self.S_Adapter is None else self.S_Adapter.weights  # under a rotation it is read as it is
            x = spatial_readout(x, *frozen, adapter, self.eps, **self._scores(), scaled=self.scaled)
        else:
            how = (self.eps, memory, self.attention_backend)
            x = spatial_adaptation(x, *frozen, adapter, *how, **self._scores(), scaled=self.scaled)
        if self.plain_mlp:
            return self._adapt_mlp(x, joint_drop, memory)
        return self._beside_mlp(x, joint_drop)

    def _adapt_reference(self, x: Tensor, temporal_drop: Tensor | None, joint_drop: Tensor | None) -> Tensor:
        if self.T_Adapter is not None:
            x = self._over_time(x, temporal_drop)
        return self._beside_mlp(self._over_space(x, False), joint_drop)

    def _scores(self) -> dict[str, Any]:
        """What a sub-block over space takes beside the frozen weights."""
        return {"rotation": self.place.rotation(), "bias": self.place.bias(self.attn)}

    def _over_time(self, x: Tensor, drop: Tensor | None) -> Tensor:
        z = self._normed(self.norm1, x)
        z = z if self.T_Adapter_in is None else self.T_Adapter_in(z)
        branch = self.T_Adapter(self._branch(z, over_time=True))  # type: ignore[misc]
        return x + dropped(branch, drop)

    def _over_space(self, x: Tensor, cls_only: bool) -> Tensor:
        attended = self._branch(self._normed(self.norm1, x), over_time=False, cls_only=cls_only)
        attended = attended if self.S_Adapter is None else self.S_Adapter(attended)
        return (x[:, :, :1] if cls_only else x) + attended

    def _beside_mlp(self, x: Tensor, drop: Tensor | None) -> Tensor:
        y = self._normed(self.norm2, x)
        out = x + self._mlp(y)
        if self.MLP_Adapter is None:
            return out
        branch = self.MLP_Adapter(y) * self.adapter_scale
        return out + dropped(branch, drop)

    def _normed(self, norm: Any, x: Tensor) -> Tensor:
        """What stands before a sub-block, in the dtype of its products."""
        dtype = compute_dtype(x, self.attn.proj.weight)
        if self.backend == "fused":
            return layer_norm(x, *_affine(norm), norm.eps, dtype)
        return _norm(norm, x).to(dtype)

    def _branch(
        self,
        z: Tensor,
        over_time: bool,
        cls_only: bool = False,
        change: Change | None = None,
        seen: Seen | None = None,
    ) -> Tensor:
        """attn(z) with all that stands between the norm before it and the residual, over T or over N."""
        weights = self.attention_weights()[1]
        qkv = frozen_linear(z, weights.qkv_weight, weights.qkv_bias, self.scaled.qkv)
        qkv = self._turned(qkv if change is None else change(z, qkv), over_space=not over_time)
        if seen is not None:
            seen(qkv)
        attended = attention_over(qkv, self, over_time, None if over_time else self.place.bias(self.attn))
        attended, z = (attended[:, :, :1], z[:, :, :1]) if cls_only else (attended, z)
        if (inner := _given(self.attn, "norm")) is not None:
            attended = _norm(inner, attended)
        if self.gate is not None:
            attended = attended * self.gate(z).sigmoid()
        return frozen_linear(attended, weights.out_weight, weights.out_bias, self.scaled.out)

    def _turned(self, qkv: Tensor, over_space: bool) -> Tensor:
        """Packed ``[B, T, N, 3D]`` with queries and keys normalised and, over space, rotated."""
        if _given(self.attn, "q_norm") is not None:
            q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(-3)  # each [B, T, N, h, d]
            qkv = torch.stack([_norm(self.attn.q_norm, q), _norm(self.attn.k_norm, k), v], -3).flatten(-3)
        turn = self.place.rotation() if over_space else None
        if turn is None:
            return qkv
        if self.backend == "fused":
            return rotated(qkv, turn, self.num_heads)
        return rotation_reference(qkv, turn.table, self.num_heads, turn.interleaved)


def _given(module: Any, *names: str) -> Any:
    """The first of these parts that there is and does something."""
    found = (getattr(module, name, None) for name in names)
    return next((part for part in found if part is not None and not isinstance(part, nn.Identity)), None)


def _bias(linear: Any) -> Tensor:
    """Its bias, or zeros where it has none."""
    found = getattr(linear, "bias", None)
    return linear.weight.new_zeros(len(linear.weight)) if found is None else found


def _affine(norm: Any) -> NormWeights:
    """What a layer norm, or an RMS norm, is given as to the operators."""
    return NormWeights(norm.weight, _bias(norm) if isinstance(norm, nn.LayerNorm) else None)


def _repeat(rows: Tensor, times: int, head_dim: int) -> Tensor:
    """The rows of each key or value head for every query head of its group."""
    return rows if times == 1 else rows.unflatten(0, (-1, head_dim)).repeat_interleave(times, 0).flatten(0, 1)


def _scaled(linear: Any, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``factor · linear(·)``, formed in the factors' dtype and given in the weight's."""
    weight, bias = linear.weight, _bias(linear)
    if factor is None:
        return weight, bias
    return (weight * factor[:, None]).to(weight.dtype), (bias * factor).to(bias.dtype)


def _norm(norm: Any, x: Tensor) -> Tensor:
    """A layer norm or RMS norm with its statistics in fp32 at least, in the dtype of ``x``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if part is None else part.to(wide) for part in _affine(norm))
    return norm_reference(x.to(wide), weight, bias, norm.eps).to(x.dtype)  # type: ignore[arg-type]
