"""The attentive head: one learned query attends to every token of every frame, then a classifier.

Shapes: B clips, T frames, N tokens a frame, D the trunk's width.

    tokens   the last block's, normalised [B, T, N, D] + attentive_time [1, T, 1, D]
    pool     a = attention of the learned latent over the T·N tokens;  a + mlp(ln(a))            [B, D]
    logits   dropout -> fc_cls                                                                   [B, num_classes]

The pool is timm's ``AttentionPoolLatent``, that of SigLIP's image tower, with as many heads as the trunk. The probes by
which image and video encoders are compared have this form (Bardes et al., V-JEPA, TMLR 2024; Assran et al., V-JEPA 2,
2025; Zhai et al., SigLIP, ICCV 2023). ``attentive_time`` is ours: it starts at zero, and lets the query tell the frames
of a trunk that sees each alone apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from aim_fast.models.head import Classifier

if TYPE_CHECKING:
    from torch import Tensor

    from aim_fast.models.headed import Headed


@dataclass(frozen=True)
class Attentive(Classifier):
    """Cross attention over all tokens of a clip; ``head_dropout`` before the classifier of ``num_classes``."""

    name: ClassVar[str] = "attentive"
    line: ClassVar[str] = "one learned query over the tokens of all frames, then a classifier (V-JEPA's, SigLIP's)"
    reads_tokens: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ("attentive_", "fc_cls.")

    def make(self, model: Headed) -> None:
        import torch
        from timm.layers import AttentionPoolLatent

        model.attentive_pool = AttentionPoolLatent(model.feature_dim, num_heads=model.num_heads)
        model.attentive_time = torch.nn.Parameter(torch.empty(1, model.time_slots, 1, model.feature_dim))
        super().make(model)

    def reset(self, model: Headed) -> None:
        from torch import nn

        pool: Any = model.attentive_pool
        for linear in (pool.q, pool.kv, pool.proj, pool.mlp.fc1, pool.mlp.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        nn.init.trunc_normal_(pool.latent, std=model.feature_dim**-0.5)
        nn.init.zeros_(model.attentive_time)
        super().reset(model)

    def logits(self, model: Headed, features: Tensor) -> Tensor:
        return model.classify(model.attentive_pool((features + model.attentive_time).flatten(1, 2)))
