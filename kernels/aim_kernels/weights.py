"""The tensors of a block as records, and their way through an autograd function.

D is the block's width, M and H the hidden units of its MLP and of an adapter. A function takes its operands as a record
themselves, of tensors, of these records and of constants, and behind it, in a row, those of them that may want a
gradient: :class:`Keeping` keeps the record for backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class NormWeights(NamedTuple):
    """The affine of a layer norm, or without a bias of an RMS norm."""

    weight: Tensor  # [D]
    bias: Tensor | None  # [D]


class UnitNorm(NormWeights):
    """Of a layer norm whose affine is in the weights behind it: ones and zeros. See :mod:`aim_kernels.folded_norms`."""

    __slots__ = ()


class ScaledRows(NamedTuple):
    """A matrix [M, K] in eight bits, ``values`` · ``scale``: see :mod:`aim_kernels.scaled_rows`."""

    values: Tensor  # [M, K] e4m3
    scale: Tensor  # [M, 1] float32


class BoundedRows(NamedTuple):
    """A weight [N, K] likewise, and what bounds its products: see :mod:`aim_kernels.scaled_product`."""

    values: Tensor  # [N, K] e4m3
    scale: Tensor  # [N, 1] float32
    bound: Tensor  # [2] float32


class ScaledWeight(NamedTuple):
    """A frozen weight [N, K] in eight bits: see :mod:`aim_kernels.scaled_product`."""

    rows: BoundedRows  # [N, K]
    columns: BoundedRows  # its transpose, [K, N]


class ScaledTrunk(NamedTuple):
    """The weights of a frozen block that are there in eight bits too."""

    qkv: ScaledWeight | None = None
    out: ScaledWeight | None = None
    fc: ScaledWeight | None = None  # of a gated MLP [Wgate; Wfc]
    proj: ScaledWeight | None = None

    def to(self, device: torch.device) -> ScaledTrunk:
        """The same on ``device``."""
        return tree_map_only(Tensor, lambda x: x.to(device), self)


UNSCALED = ScaledTrunk()


class AttentionWeights(NamedTuple):
    """The two projections of an attention, the first packed as q, k, v."""

    qkv_weight: Tensor  # [3D, D]
    qkv_bias: Tensor  # [3D]
    out_weight: Tensor  # [D, D]
    out_bias: Tensor  # [D]


class MLPWeights(NamedTuple):
    """The two projections of an MLP; CLIP: M = 4D. Where it is gated, that of the gates beside the first one."""

    fc_weight: Tensor  # [M, D]
    fc_bias: Tensor  # [M]
    proj_weight: Tensor  # [D, M]
    proj_bias: Tensor  # [D]
    gate_weight: Tensor | None = None  # [M, D]
    gate_bias: Tensor | None = None  # [M]


class AdapterWeights(NamedTuple):
    """The four tensors of one bottleneck adapter."""

    w1: Tensor  # [H, D]
    b1: Tensor  # [H]
    w2: Tensor  # [D, H]
    b2: Tensor  # [D]


class FormedAdapter(NamedTuple):
    """An adapter as its sub-block reads it, see :mod:`aim_kernels.formed_adapter`."""

    w1: Tensor  # [H, D] in the products' dtype, like w2
    b1: Tensor  # [H] in the parameters' dtype, like b2; both [P, ·], P times the same, where gradients come in P parts
    w2: Tensor  # [D, H]
    b2: Tensor  # [D]
    low_b1: Tensor  # [H] b1 in the products' dtype, a constant
    low_b2: Tensor  # [D] b2, and the bias that it is added to, likewise

    @property
    def added_bias(self) -> Tensor:
        """b2 [D]."""
        return self.b2[0] if self.b2.ndim == 2 else self.b2


NOT_FORMED = (None,) * len(FormedAdapter._fields)  # in the place of one, in a row


class StackedMLP(NamedTuple):
    """The frozen MLP's weights with an adapter's beside them, constants in the products' dtype."""

    widening: Tensor  # [M + H, D], gated [2M + H, D]
    bias: Tensor  # [M + H], gated [2M + H]
    narrowing: Tensor  # [D, M + H]


class AdapterNeeds(NamedTuple):
    """Which of an adapter's tensors want a gradient, those of a formed one and those of a plain one alike."""

    w1: bool
    b1: bool
    w2: bool
    b2: bool
    low_b1: bool = False
    low_b2: bool = False


class AdapterGradients(NamedTuple):
    """The gradients of a formed adapter's tensors, None where one is not wanted."""

    w1: Tensor | None = None
    b1: Tensor | None = None
    w2: Tensor | None = None
    b2: Tensor | None = None
    low_b1: Tensor | None = None
    low_b2: Tensor | None = None


def require_gradient(*records: Sequence[Any] | None) -> bool:
    """Whether any tensor of these records trains."""
    for record in records:
        for weight in record or ():
            if weight is not None and weight.requires_grad:
                return True
    return False


def recorded(*records: Sequence[Any] | None) -> bool:
    """Whether autograd records a function of these, and with it what the function keeps."""
    return torch.is_grad_enabled() and require_gradient(*records)


def apply(function: type[torch.autograd.Function], *operands: Any) -> Any:
    """``function.apply(*operands)``, past its search for what functorch has left, which takes longer than the call."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*operands)
    return super(torch.autograd.Function, function).apply(*operands)  # type: ignore[misc]


Operands = TypeVar("Operands", bound=tuple)


class Keeping(Generic[Operands]):
    """How a function keeps its ``operands`` for backward: a NamedTuple of its input, of what is not kept, of tensors
    and records of tensors (or None), and last of constants.

    Args:
        given: how many stand behind the input that are not kept.
    """

    def __init__(self, operands: type[Operands], given: int) -> None:
        self.operands, self.given = operands, given
        self.places: list[tuple[Any, int, int]] = []  # record, None for a single tensor; first place, one past last
        end = 1
        for hint in [*get_type_hints(operands).values()][1 + given :]:
            kinds = (hint, *get_args(hint))
            record = next((kind for kind in kinds if hasattr(kind, "_fields")), None)
            if record is None and Tensor not in kinds:
                break
            start, end = end, end + (1 if record is None else len(record._fields))
            self.places.append((record, start, end))
        self.end = end

    def keep(self, ctx: Any, x: Tensor | None, operands: Operands, *others: Tensor | None) -> None:
        """Keeps ``x`` in the place of the input, the operands, and other tensors, for :meth:`kept` in backward."""
        row: list[Any] = [x]
        for value, (record, start, end) in zip(operands[1 + self.given :], self.places):
            if record is None:
                row.append(value)
            else:
                row.extend((None,) * (end - start) if value is None else value)
        ctx.save_for_backward(*row, *others)
        ctx.constants = operands[1 + self.given + len(self.places) :]

    def kept(self, ctx: Any) -> tuple[Any, ...]:
        """The operands, None in the places of those that were not kept, and the other tensors."""
        saved = ctx.saved_tensors  # asked for once, as a checkpoint wants it
        values: list[Any] = [saved[0], *(None,) * self.given]
        for record, start, end in self.places:
            first = saved[start]
            values.append(first if record is None or first is None else record(*saved[start:end]))
        return self.operands(*values, *ctx.constants), *saved[self.end :]
