"""The affine of a frozen block's norms, folded once into the weights behind them.

    W (γ∘x̂ + β) + b = W' x̂ + b',   W' = W·diag(γ),  b' = b + Wβ        of Wqkv and Wfc, and a gated MLP's Wgate

The norms then give x̂ alone, in the products' dtype: the products read it, and it is kept for backward in the place of
x, so that no copy of x is written beside it and no norm is run again. An adapter behind a norm takes γ and β over
likewise, when it is formed (:mod:`aim_kernels.formed_adapter`). W' is rounded once, from the weights as they were
before they were held in half precision, or to eight bits alone; it lies beside W, which all else reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from aim_kernels.scaled_product import scaled_weight
from aim_kernels.weights import (
    UNSCALED,
    AttentionWeights,
    MLPWeights,
    NormWeights,
    ScaledTrunk,
    ScaledWeight,
    UnitNorm,
    require_gradient,
)

Weights = TypeVar("Weights", AttentionWeights, MLPWeights)


class FoldedNorms(NamedTuple):
    """What a block reads in place of its norms and of the weights behind them."""

    norm: UnitNorm  # of both
    attention: dict[str, Tensor]  # by the fields of AttentionWeights, without those that are there in eight bits
    mlp: dict[str, Tensor]  # of MLPWeights, likewise
    scaled: ScaledTrunk  # the block's, folded
    state: tuple[Any, ...]  # of the parameters that they were made of

    def before(self, weights: Weights) -> tuple[NormWeights, Weights]:
        """The norm and the weights behind it that stand in the place of a norm and ``weights``."""
        folded = self.attention if isinstance(weights, AttentionWeights) else self.mlp
        return self.norm, weights._replace(**folded)

    def holds(self, norms: tuple[NormWeights, NormWeights], attention: AttentionWeights, mlp: MLPWeights) -> bool:
        """Whether the block's norms, and the weights behind them, are still those, unchanged since."""
        return self.state == _state(norms, attention, mlp)


def fold_norms(
    norms: tuple[NormWeights, NormWeights],
    attention: AttentionWeights,
    mlp: MLPWeights,
    dtype: torch.dtype,
    scaled: ScaledTrunk = UNSCALED,
) -> FoldedNorms | None:
    """The norms before ``attention`` and ``mlp`` folded, in ``dtype``, and in eight bits what is ``scaled``; None where
    they or the weights train, where one is an RMS norm, and where a weight is put together anew in each pass, which
    nobody would see change."""
    read = [x for x in (*attention[:2], *mlp[:2], *mlp[4:]) if x is not None]
    if require_gradient(*norms, attention, mlp) or any(norm.bias is None for norm in norms):
        return None
    if not all(isinstance(x, nn.Parameter) for x in read):
        return None
    with torch.no_grad():
        ones = torch.ones_like(norms[0].weight)
        behind_first = _folded(norms[0], attention, ("qkv",))
        behind_second = _folded(norms[1], mlp, ("fc",) if mlp.gate_weight is None else ("gate", "fc"))
        scaled = scaled._replace(qkv=_quantised(scaled.qkv, behind_first), fc=_quantised(scaled.fc, behind_second))
        return FoldedNorms(
            UnitNorm(ones, torch.zeros_like(ones)),
            {name: x.to(dtype) for name, x in behind_first.items()},
            {name: x.to(dtype) for name, x in behind_second.items()},
            scaled,
            _state(norms, attention, mlp),
        )


def _folded(norm: NormWeights, weights: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    found, wide = {}, torch.promote_types(norm.weight.dtype, torch.float32)
    for name in names:
        weight, bias = (getattr(weights, f"{name}_{part}").to(wide) for part in ("weight", "bias"))
        found[f"{name}_weight"] = weight * norm.weight
        found[f"{name}_bias"] = torch.addmv(bias, weight, norm.bias.to(wide))  # type: ignore[union-attr]
    return found


def _quantised(plain: ScaledWeight | None, folded: dict[str, Tensor]) -> ScaledWeight | None:
    """What stands in the place of ``plain``: the weights of ``folded``, taken out of it."""
    if plain is None:
        return None
    biases = torch.cat([x for name, x in folded.items() if name.endswith("bias")])
    return scaled_weight(torch.cat([folded.pop(name) for name in [*folded] if name.endswith("weight")]), biases)


def _state(norms: tuple[NormWeights, NormWeights], attention: AttentionWeights, mlp: MLPWeights) -> tuple[Any, ...]:
    """Which tensors are folded, where they are, and how often they were written: a copy of a model has others."""
    folded = (*norms[0], *norms[1], *attention[:2], *mlp[:2], *mlp[4:])
    return tuple((id(x), x.device, x._version) for x in folded if x is not None)
