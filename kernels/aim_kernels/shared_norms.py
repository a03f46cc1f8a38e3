"""Where one sub-block ends and the next begins: who runs the norm between them, and what goes over.

A sub-block that knows the norm :class:`Ahead` of it runs that norm with its residual add
(:mod:`aim_kernels.residual_norm`), and gives both outputs to the next one (:class:`Normed`), whose backward gives it
the gradients of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_kernels import residual_norm  # noqa: F401  (registers the operators)
from aim_kernels.column_sum import branch_gradient
from aim_kernels.layer_norm import layer_norm_to_keep
from aim_kernels.packed import Packed, parts_of
from aim_kernels.registration import ops
from aim_kernels.residual import residual_add
from aim_kernels.scaled_norm import scaled_norm
from aim_kernels.scaled_rows import EIGHT_BITS
from aim_kernels.weights import NormWeights, ScaledRows, ScaledWeight, UnitNorm, require_gradient


class Normed(NamedTuple):
    """What the norm before a sub-block gave: [.., D] and [..] of the input's shape, or [M, D] and [M]."""

    y: Tensor  # not filled where the rows in eight bits alone are read
    kept: Tensor | None  # the input as it is kept for backward, where it is not the input itself
    mean: Tensor | None  # None of a UnitNorm, whose y is kept
    rstd: Tensor
    values: Tensor | None = None  # of y in eight bits
    scale: Tensor | None = None

    @property
    def rows(self) -> Tensor | ScaledRows:
        """What the sub-block's first product reads, [M, D]."""
        if self.values is None or self.scale is None:
            return rows_of(self.y)
        return ScaledRows(self.values, self.scale)

    def kept_of(self, x: Tensor) -> Tensor:
        """The sub-block's input ``x`` as backward reads it, or x̂ in its place."""
        kept = _kept(x, self.y, self.kept, self.mean)
        return kept if kept is x else kept.view(x.shape)


class Ahead:
    """The norm that the output of a sub-block meets next, and once that sub-block has run it, what it gave.

    Args:
        norm, eps: of the next sub-block, which must be frozen.
        precise: whether y is in float32 at least, and not in the products' dtype.
        scaled, plain: whether the next product reads rows in eight bits, and whether y itself is read.
        packs: whether the output may be packed, as it is read by what has a norm ahead itself.
    """

    def __init__(
        self,
        norm: NormWeights,
        eps: float,
        precise: bool = False,
        scaled: bool = False,
        plain: bool = True,
        packs: bool = True,
    ) -> None:
        self.norm, self.eps, self.precise, self.scaled, self.plain = norm, eps, precise, scaled, plain
        self.packs = packs and isinstance(norm, UnitNorm) and not precise
        self.kept = torch.is_grad_enabled()
        self._found: tuple[Tensor, int, Normed] | None = None

    def filled(self, outputs: Any) -> Tensor:
        """Takes what :func:`add_and_norm` gave through autograd; returns its first output."""
        out, *parts = outputs
        self._found = out, out._version, Normed(*parts)
        return out

    def of(self, x: Tensor) -> Normed | None:
        """What was found of ``x``, once; None where that is not the tensor, as it was, whose norm was run."""
        found, self._found = self._found, None
        return None if found is None or found[0] is not x or found[1] != x._version else found[2]


def norm_ahead(
    norm: NormWeights,
    eps: float,
    scaled: ScaledWeight | None,
    plain: bool = False,
    precise: bool = False,
    packs: bool = True,
) -> Ahead | None:
    """A norm for a product with a ``scaled`` weight, or for more readers (``plain``); None for one that trains."""
    if require_gradient(norm):
        return None
    in_eight_bits = scaled is not None and not precise
    return Ahead(norm, eps, precise, in_eight_bits, plain or not in_eight_bits or isinstance(norm, UnitNorm), packs)


def gains(x: Tensor) -> bool:
    """Whether neighbours on ``x`` share norms: a CPU runs the parts, a compiler would keep more for backward, and in
    inference mode nobody would tell that a stream was written to."""
    return x.is_cuda and not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled()


def normed_of(x: Tensor, before: Ahead | None) -> Normed | None:
    """What the sub-block ``before`` has found of ``x``."""
    return None if before is None else before.of(x)


def norm_before(
    x: Tensor,
    norm: NormWeights,
    eps: float,
    dtype: torch.dtype,
    recorded: bool,
    scaled: bool = False,
    plain: bool = True,
    unit: bool = False,
) -> Normed:
    """The norm of ``x`` [.., D] that nobody has run yet, y in ``dtype``, that of the products; of a ``unit`` one y is
    kept."""
    if scaled:
        rows, y, mean, rstd, kept = scaled_norm(x, norm, eps, dtype, plain or unit, recorded and not unit)
        statistics = None if unit else mean, rstd
        return Normed(_unfilled(x, dtype) if y is None else y, None if kept is x else kept, *statistics, *rows)
    if unit:
        y, _, rstd = ops.layer_norm(x, *norm, eps, dtype)
        return Normed(y, None, None, rstd)
    y, mean, rstd, kept = layer_norm_to_keep(x, norm, eps, dtype, dtype, recorded)
    return Normed(y, None if kept is x else kept, mean, rstd)


def add_and_norm(
    x: Tensor, branch: Tensor, factor: Tensor | None, added: Tensor | None, ahead: Ahead | None, dtype: torch.dtype
) -> Any:
    """The sum of ``x`` and of ``branch`` [M, D] in the shape and dtype of ``x``, and with a norm ``ahead`` what
    :class:`Normed` has of it, in rows.

    Beside an x̂ in bfloat16 a sum in float32 is :class:`~aim_kernels.packed.Packed`.
    """
    if ahead is None:
        return residual_add(x, branch, factor, added)
    rows, *parts = parts_of(x)
    unit = isinstance(ahead.norm, UnitNorm)
    kept = ahead.kept and not unit and dtype.itemsize < x.dtype.itemsize
    packs = ahead.packs and _packs(x, dtype)
    of_y = torch.promote_types(x.dtype, torch.float32) if ahead.precise else dtype
    asked = (of_y, EIGHT_BITS if ahead.scaled else None, ahead.plain, dtype if kept else None)
    operands = (rows, branch, factor, added, *ahead.norm, ahead.eps, *asked, *parts, packs)
    out, y, copy, mean, rstd, values, scale = ops.residual_norm(*operands)
    return (
        Packed(x.shape, y, out, mean, rstd) if packs else out.view(x.shape),
        y if ahead.plain else _unfilled(branch, dtype),
        copy if kept else None,
        None if unit else mean,
        rstd,
        *((values, scale) if ahead.scaled else (None, None)),
    )


def _packs(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether 24 bits hold a stream ``x`` beside a tensor in the products' ``dtype``."""
    return x.dtype == torch.float32 and dtype == torch.bfloat16


def constants_of(ctx: Any, outputs: Any) -> None:
    """Tells autograd of a function that returns ``outputs`` of :func:`add_and_norm` that the sum and y alone vary."""
    if isinstance(outputs, tuple):
        ctx.mark_non_differentiable(*(x for x in outputs[2:] if x is not None))
        ctx.set_materialize_grads(False)


def left(outputs: Any, ahead: Ahead | None) -> tuple[Tensor | None, ...]:
    """What the backward wants of ``outputs`` of :func:`add_and_norm`: the sum as it is kept, mean, rstd, the weight."""
    if ahead is None:
        return None, None, None, None
    out, y, kept, mean, rstd, *_ = outputs
    return _kept(out, y, kept, mean), mean, rstd, ahead.norm.weight


def _kept(x: Tensor, y: Tensor, kept: Tensor | None, mean: Tensor | None) -> Tensor:
    return y if mean is None else x if kept is None else kept


def arrive(
    gradients: tuple[Tensor, Tensor | None],
    found: Sequence[Any],
    dtype: torch.dtype,
    needs_bias: bool,
    factor: Tensor | None = None,
    dropped: bool = True,
    scaled: bool = False,
    packed: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, ScaledRows | None]:
    """From the ``gradients`` of the sum and of y: that of the sum in all, of the branch [M, D] in ``dtype``, where
    ``needs_bias`` rows [N, D] whose sum is that of its bias, and that of the branch in eight bits where ``scaled`` asks
    for it and it comes in the same pass. ``found`` is what :func:`left` gave, the rest as of ``branch_gradient``; where
    it may be ``packed``, as the next to read it is such a function too, that of the sum is that of the branch and a
    byte."""
    (g, dy), (kept, mean, rstd, weight) = gradients, found
    if dy is None:
        return g, *_with_rows(branch_gradient(g, dtype, needs_bias, factor, dropped)), None
    stream, low, *_ = parts_of(g)
    operands = (dy, rows_of(kept), weight, mean, rstd, stream)
    if stream.dtype == g.dtype == dtype and (factor is None or not dropped):  # the branch's gradient is the sum's
        dx = ops.layer_norm_backward(*operands).view(g.shape)
        return dx, *_with_rows(branch_gradient(dx, dtype, needs_bias, factor, dropped)), None
    packed = packed and _packs(g, dtype) and (factor is None or not dropped)
    how = (factor, dtype, dropped, needs_bias, dy.is_cuda)  # on a GPU, which adds them to the sums of others
    dx, branch, sums, *eight = ops.residual_norm_backward(*operands, *how, EIGHT_BITS if scaled else None, low, packed)
    dx = Packed(g.shape, branch, dx) if packed else dx.view(g.shape)
    return dx, branch, sums.view(-1, branch.shape[1]) if needs_bias else None, ScaledRows(*eight) if scaled else None


def _with_rows(found: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    branch, sums = found
    return branch, None if sums is None else sums[None]


def depart(
    given: bool, dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor | None, rstd: Tensor, g: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a sub-block's input and of its norm's output from ``dy``, that of the latter, and ``g``, that of
    its sum: as they are where the norm was ``given``, else None of its output.
    """
    return (g, dy) if given else (ops.layer_norm_backward(dy.view_as(x), x, weight, mean, rstd, g), None)


def rows_of(x: Tensor) -> Tensor:
    """``x`` [.., D] as [M, D]: of rows itself, which torch would make a view of."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _unfilled(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty((), dtype=dtype).expand(x.shape)
