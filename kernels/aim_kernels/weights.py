"""The tensors of a block as records, and their way through an autograd function, which takes and gives a flat row.

D is the block's width, M and H the hidden units of its MLP and of an adapter. A function's operands are a record
themselves, of tensors, of these records and of constants: :class:`Packing` lays them in a row and names them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor


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
    return any(getattr(weight, "requires_grad", False) for record in records for weight in record or ())


def recorded(*records: Sequence[Any] | None) -> bool:
    """Whether autograd records a function of these, and with it what the function keeps."""
    return torch.is_grad_enabled() and require_gradient(*records)


Operands = TypeVar("Operands", bound=tuple)


class Packing(Generic[Operands]):
    """``operands``, a NamedTuple of tensors, records of tensors (or None), and last constants, as a row and back.

    Each tensor of a record has its place in the row whether the record is there or None, so that gradients and
    ``needs_input_grad`` are named by the same fields. The constants are one tuple, the row's last element.
    """

    def __init__(self, operands: type[Operands]) -> None:
        self.operands = operands
        hints, end = get_type_hints(operands), 0
        self.names = tuple(hints)
        self.places: list[tuple[Any, int, int]] = []  # record, None for a single tensor; first place, one past last
        for hint in hints.values():
            kinds = (hint, *get_args(hint))
            record = next((kind for kind in kinds if hasattr(kind, "_fields")), None)
            if record is None and Tensor not in kinds:
                break
            start, end = end, end + (1 if record is None else len(record._fields))
            self.places.append((record, start, end))

    def pack(self, operands: Operands) -> list[Any]:
        return [*self._tensors(operands), operands[len(self.places) :]]

    def _tensors(self, operands: Operands) -> list[Any]:
        row: list[Any] = []
        for value, (record, start, end) in zip(operands, self.places):
            row.extend((None,) * (end - start) if value is None else (value,) if record is None else value)
        return row

    def unpack(self, row: Sequence[Any]) -> Operands:
        values = []
        for record, start, end in self.places:
            first = row[start]
            values.append(first if record is None or first is None else record._make(row[start:end]))
        return self.operands(*values, *row[-1])

    def keep(self, ctx: Any, operands: Operands, *others: Tensor | None) -> None:
        """Keeps the operands, and other tensors, for :meth:`kept` in backward."""
        row = self.pack(operands)
        ctx.save_for_backward(*others, *(value if isinstance(value, Tensor) else None for value in row))
        ctx.constants = [None if isinstance(value, Tensor) else value for value in row]

    def kept(self, ctx: Any) -> tuple[Any, ...]:
        """The operands that were kept, and the other tensors."""
        saved = ctx.saved_tensors  # asked for once, as a checkpoint wants it
        others = len(saved) - len(ctx.constants)
        row = [constant if tensor is None else tensor for tensor, constant in zip(saved[others:], ctx.constants)]
        return self.unpack(row), *saved[:others]

    def needs(self, ctx: Any) -> Any:
        """Which operands want a gradient, by name: booleans in place of tensors."""
        nothing = (False,) * (len(self.names) - len(self.places))
        return self.unpack((*ctx.needs_input_grad[:-1], nothing))

    def gradients(self, **gradients: Any) -> tuple[Any, ...]:
        """What backward returns: these, by the names of their operands, and None for all else."""
        return *self._tensors(self.operands(**{**dict.fromkeys(self.names), **gradients})), None
