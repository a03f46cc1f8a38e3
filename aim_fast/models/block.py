"""A frozen pre-norm block of any trunk, in one canonical form, which runs as the method put on it says.

    z = n1(x);  [q; k; v] = Wqkv z + b;  a = softmax(q kᵀ/√d) v;  o = Wo a + bo          attend
    y = n2(x);  m = Wp act(Wf y + bf) + bp                                               expand

``attention_weights`` and ``mlp_weights`` give these tensors, LayerScale folded in, as
:class:`aim_kernels.AIMBlock` asks of a block. What a trunk has beyond that (a rotation, inner norms, gates) is in its
own block's ``attend`` and ``expand``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from aim_fast.models.method import Method
from aim_kernels.adaptation import attention_over_space, mlp_reference, norm_reference
from aim_kernels.choices import Memory
from aim_kernels.modules import AIMBlock
from aim_kernels.trained_trunk import attention_branch, mlp_branch


def dropped(branch: Tensor, drop: Tensor | None) -> Tensor:
    """A branch under droppath's factors, in the branch's dtype."""
    return branch if drop is None else branch * drop.to(branch.dtype)


class FrozenBlock(AIMBlock):
    """Mixed in before a block of the operators': forward is the method's. Shapes [B, T, N, D]."""

    method: Method

    def forward(self, x: Tensor, cls_only: bool = False) -> Tensor:
        return self.method.run(self, x, cls_only)

    def attend(self, x: Tensor) -> Tensor:
        """The frozen attention over space, and the norm before it; no residual is added."""
        norm, attention = self.attention_weights()
        if self.backend == "fused":
            return attention_branch(x, norm, attention, self.num_heads, "space", eps=self.eps)
        z = norm_reference(x, *norm, self.eps)
        qkv = F.linear(z, attention.qkv_weight, attention.qkv_bias)
        return F.linear(attention_over_space(qkv, self.num_heads), attention.out_weight, attention.out_bias)

    def expand(self, x: Tensor, memory: Memory = "fast") -> Tensor:
        """The frozen MLP, and the norm before it; no residual is added."""
        norm, mlp = self.mlp_weights()
        if self.backend == "fused":
            return mlp_branch(x, norm, mlp, activation=self.activation, eps=self.eps, memory=memory)
        return mlp_reference(norm_reference(x, *norm, self.eps), mlp, self.activation)
