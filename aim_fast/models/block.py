"""A frozen pre-norm block of any trunk, in one canonical form, which runs as the method put on it says.

    z = n1(x);  [q; k; v] = Wqkv z + b;  a = softmax(q kᵀ/√d) v;  o = Wo a + bo          attend
    y = n2(x);  m = Wp act(Wf y + bf) + bp                                               expand

``attention_weights`` and ``mlp_weights`` give these tensors, LayerScale folded in, as
:class:`aim_kernels.AIMBlock` asks of a block. What a trunk has beyond that (a rotation, inner norms, gates) is in its
own block's parts. A method may come between: ``before`` changes z, ``change`` the packed [q; k; v].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aim_fast.errors import UsageError
from aim_fast.models.method import Method
from aim_kernels.adaptation import attention_over_space, attention_over_time, mlp_reference, norm_reference
from aim_kernels.choices import Memory
from aim_kernels.joint_adaptation import joint_adaptation
from aim_kernels.layer_norm import layer_norm
from aim_kernels.memory import run_again
from aim_kernels.modules import AIMBlock
from aim_kernels.precision import compute_dtype
from aim_kernels.scaled_product import frozen_linear
from aim_kernels.spatial_adaptation import spatial_adaptation
from aim_kernels.spatial_attention import spatial_attention
from aim_kernels.spatial_readout import spatial_readout
from aim_kernels.temporal_attention import temporal_attention
from aim_kernels.trained_trunk import mlp_branch, mlp_of

Before = Callable[[Tensor], Tensor]  # z [B, T, N, D] to itself
Change = Callable[[Tensor, Tensor], Tensor]  # (z, packed qkv [B, T, N, 3D]) to packed qkv
Seen = Callable[[Tensor], object]  # is given the packed qkv [B, T, N, 3D] that the attention reads


def dropped(branch: Tensor, drop: Tensor | None) -> Tensor:
    """A branch under droppath's factors, in the branch's dtype."""
    return branch if drop is None else branch * drop.to(branch.dtype)


def untouched(x: Tensor, module: nn.Module) -> Tensor:
    """``x``, with gradients of zero for the parameters of a module that nothing is read of."""
    return x + torch.stack([(parameter * 0).sum() for parameter in module.parameters()]).sum().to(x.dtype)


def attention_over(qkv: Tensor, block: AIMBlock, over_time: bool, bias: Tensor | None = None) -> Tensor:
    """Attention among frames or among the tokens of a frame: packed ``qkv`` [B, T, N, 3D] to [B, T, N, D].

    ``bias`` [1, h, N, N] is added to the scores over space.
    """
    heads, fused = block.num_heads, block.backend == "fused"
    if over_time:
        return temporal_attention(qkv, heads) if fused else attention_over_time(qkv, heads)
    if fused:
        return spatial_attention(qkv, heads, block.attention_backend, bias)
    return attention_over_space(qkv, heads, bias)


def products(block: FrozenBlock) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Weight and bias of the block's four products, of qkv, out, fc and proj, as its own parameters.

    Raises UsageError, naming what, for a block whose trunk has something else between or around them.
    """
    (_, attention), (_, mlp) = block.attention_weights(), block.mlp_weights()
    found = [attention[:2], attention[2:4], mlp[:2], mlp[2:4]]
    plain = block.plain_attention and block.plain_mlp and mlp.gate_weight is None
    if not plain or not all(isinstance(tensor, nn.Parameter) for pair in found for tensor in pair):
        raise UsageError(
            "nothing can be merged into this trunk: its blocks have LayerScale, gates, inner norms or products without "
            "bias; take a plain one, such as CLIP's"
        )
    return found  # type: ignore[return-value]


class FrozenBlock(AIMBlock):
    """Mixed in before a block of the operators': forward is the method's. Shapes [B, T, N, D].

    ``prefix`` tokens of a frame stand before its patches.
    """

    method: Method = Method()
    prefix: int
    plain_attention: bool = True  # whether the fused sub-block of the attention is all that it has
    plain_mlp: bool = True

    def forward(self, x: Tensor, cls_only: bool = False) -> Tensor:
        return self.method.run(self, x, cls_only)

    @property
    def fused_adapters(self) -> tuple[str, ...]:
        """None where the method runs the block by itself: what it calls an adapter may be anything."""
        return super().fused_adapters if type(self.method).run is Method.run else ()

    def remembering(self, adapt: Callable[..., Tensor], x: Tensor, cls_only: bool) -> Tensor:
        """``adapt(block, x, memory, cls_only)`` with the block's memory: "lean" keeps ``x`` alone, the rest runs twice.

        Nothing random may run in it. A compiler forgets the checkpoint around an autograd function, and would keep
        everything: there each sub-block keeps its own input.
        """
        if self.memory == "lean" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            dtype = compute_dtype(x, self.attention_weights()[1].qkv_weight)
            return run_again(partial(adapt, self), x, "fast", cls_only, dtype=dtype)
        return adapt(self, x, self.memory, cls_only)

    def attend(
        self,
        x: Tensor,
        over_time: bool = False,
        cls_only: bool = False,
        before: Before | None = None,
        change: Change | None = None,
        seen: Seen | None = None,
    ) -> Tensor:
        """The frozen attention over space or time, and the norm before it; no residual is added.

        With ``cls_only`` of the first token of each frame, [B, T, 1, D].
        """
        norm, attention = self.attention_weights()
        if self.backend == "fused":
            z = layer_norm(x, *norm, self.eps, compute_dtype(x, attention.qkv_weight))
        else:
            z = norm_reference(x, *norm, self.eps)
        z = z if before is None else before(z)
        qkv = frozen_linear(z, attention.qkv_weight, attention.qkv_bias, self.scaled.qkv)
        qkv = self._turned(qkv if change is None else change(z, qkv), over_space=not over_time)
        if seen is not None:
            seen(qkv)
        found = attention_over(qkv, self, over_time)
        found = found[:, :, :1] if cls_only else found
        return frozen_linear(found, attention.out_weight, attention.out_bias, self.scaled.out)

    def expand(self, x: Tensor, memory: Memory = "fast", before: Before | None = None) -> Tensor:
        """The frozen MLP, and the norm before it; no residual is added."""
        norm, mlp = self.mlp_weights()
        if self.backend == "fused":
            if before is None:
                how: dict[str, Any] = {"activation": self.activation, "eps": self.eps, "memory": memory}
                return mlp_branch(x, norm, mlp, **how, scaled=self.scaled)
            y = before(layer_norm(x, *norm, self.eps, compute_dtype(x, mlp.fc_weight)))
            return mlp_of(y, mlp, self.activation, memory, self.scaled)
        y = norm_reference(x, *norm, self.eps)
        return mlp_reference(y if before is None else before(y), mlp, self.activation)

    def attended(self, x: Tensor, memory: Memory = "fast", cls_only: bool = False) -> Tensor:
        """``x + attend(x)`` over space, or with ``cls_only`` its first token, in the least work."""
        if self.backend != "fused" or not self.plain_attention:
            return (x[:, :, :1] if cls_only else x) + self.attend(x, cls_only=cls_only)
        frozen = (*self.attention_weights(), self.num_heads)
        if cls_only:
            return spatial_readout(x, *frozen, None, self.eps, **self._scores(), scaled=self.scaled)
        how = (self.eps, memory, self.attention_backend)
        return spatial_adaptation(x, *frozen, None, *how, **self._scores(), scaled=self.scaled)

    def expanded(self, x: Tensor, memory: Memory = "fast") -> Tensor:
        """``x + expand(x)``."""
        if self.backend != "fused" or not self.plain_mlp:
            return x + self.expand(x, memory)
        how: dict[str, Any] = {"activation": self.activation, "eps": self.eps, "memory": memory}
        return joint_adaptation(x, *self.mlp_weights(), **how, scaled=self.scaled)

    def _turned(self, qkv: Tensor, over_space: bool) -> Tensor:
        """Packed ``[B, T, N, 3D]`` with what the trunk does to queries and keys."""
        return qkv

    def _scores(self) -> dict[str, Any]:
        """What the trunk does to the scores of the attention over space, as its operators take it."""
        return {}


class Transformer(nn.Module):
    """The blocks in a row, as CLIP names them."""

    resblocks: Sequence[Any]

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)  # type: ignore[assignment]

    def forward(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Blocks ``start`` to ``stop`` - 1 of ``x`` [B, T, N, D]."""
        for number in range(start, stop):
            x = self.resblocks[number](x)
        return x
