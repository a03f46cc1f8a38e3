"""What a block reads in one pass: its frozen weights, and what :mod:`aim_kernels.formed_together` lends it beside."""

from __future__ import annotations

from dataclasses import dataclass, field

from aim_kernels.shared_norms import Ahead
from aim_kernels.weights import AttentionWeights, FormedAdapter, MLPWeights, NormWeights, ScaledTrunk, StackedMLP


@dataclass(eq=False)
class Lent:
    """The weights as a block has them, or with its norms folded (:mod:`aim_kernels.folded_norms`), read once."""

    plain: tuple[NormWeights, AttentionWeights]
    attention: tuple[NormWeights, AttentionWeights]  # the same, folded
    mlp: tuple[NormWeights, MLPWeights]  # likewise, and so is what is there in eight bits:
    scaled: ScaledTrunk
    norm: NormWeights | None = None  # the one that is folded into the MLP, whose affine an adapter takes over
    formed: dict[str, FormedAdapter] = field(default_factory=dict)  # by name
    stacked: StackedMLP | None = None
    before: Ahead | None = None  # the norms of its input and output that it shares with other blocks
    ahead: Ahead | None = None
