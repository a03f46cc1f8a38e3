"""Tensors for a call of an operator, and the judgement of what a candidate made of them.

A call is timed on all of its rows or clips, and checked on the first of them: ``truth`` is the operator's reference in
float64, ``plain`` what torch makes of the reference's expressions in the call's own dtype. The rule is that of
:mod:`aim_kernels.error_rule`; codes of one byte may differ by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aim_fast.tuning.calls import Call, Layout
from aim_kernels import error_rule
from aim_kernels.packed import unpacked_reference
from aim_kernels.registration import OPERATORS, plain_torch

_CHECKED_ROWS = 256
# operands of the size of a parameter: they have no row for each clip
_PARAMETERS = (
    *("w1", "b1", "w2", "b2", "weight", "bias", "added", "table", "folded", "widening", "narrowing"),
    *("weight_scale", "bound"),
    *("class_embedding", "positional_embedding", "temporal_embedding", "ln_weight", "ln_bias"),
)
_HALVES = (torch.float16, torch.bfloat16)
_aten = torch.ops.aten
# sums that torch's own attention and norms keep in float32 whatever their operands are
_KEPT = {_aten.logsumexp, _aten.sum, _aten.mean}


class Verdict(NamedTuple):
    """The error of a result, that of plain torch, and what is wrong with it, or None."""

    error: float
    plain: float
    fault: str | None


class Standard:
    """What the results for ``operands`` are held to."""

    def __init__(self, call: Call, operands: Sequence[Any]) -> None:
        operator, rounded = OPERATORS[call.operator], "attention" in call.operator
        self.packed = dict(zip(call.names, call.operands)).get("packed", False)
        dtype = next(x.dtype for x in operands if isinstance(x, Tensor) and x.is_floating_point())
        with plain_torch():
            self.truth = self._values(operator(*(_wide(x) for x in operands)))
            if rounded and dtype in _HALVES:
                with _Rounded(dtype):
                    self.plain = self._values(operator(*operands))
            else:
                self.plain = self._values(operator(*operands))
        # a cast that wide operands do without is held to itself
        both = zip(self.truth, self.plain, strict=True)
        self.truth = tuple(truth if truth.shape == plain.shape else plain for truth, plain in both)

    def judge(self, results: Any) -> Verdict:
        """The worst of ``results``, an operator's, under the rule."""
        worst = Verdict(0.0, 0.0, None)
        found = self._values(results)
        if len(found) != len(self.plain):
            return Verdict(math.inf, 0.0, f"{len(found)} results, not {len(self.plain)}")
        for got, plain, truth in zip(found, self.plain, self.truth, strict=True):
            if got.shape != plain.shape or got.dtype != plain.dtype:
                return Verdict(math.inf, 0.0, f"{got.dtype} {list(got.shape)}, not {plain.dtype} {list(plain.shape)}")
            if not got.numel():
                continue
            if not got.is_floating_point():
                apart = (got.int() - plain.int()).abs().max().item()
                if apart > 1:
                    return Verdict(float(apart), 0.0, f"codes differ by {apart}")
                continue
            ours, theirs = error_rule.errors(got, plain, truth)
            fault = None
            if not error_rule.within(ours, theirs):
                fault = f"error {ours:.2g}, plain torch loses {theirs:.2g}"
            if worst.fault is None and (fault or ours * worst.plain >= worst.error * theirs):
                worst = Verdict(ours, theirs, fault)
        return worst

    def _values(self, results: Any) -> tuple[Tensor, ...]:
        """``results``, of a packed stream its value in place of the byte: beside another rounding it is another one."""
        found = results if isinstance(results, tuple) else (results,)
        return (unpacked_reference(found[1], found[0]), *found[1:]) if self.packed else found


def checked_rows(call: Call) -> int:
    """How many of a call's clips or rows are checked: some hundred tokens, and as divisible by 16 as all of them, so
    that the kernels compiled for them are those that run on all."""
    first = call.operands[0]
    if not isinstance(first, Layout):
        raise TypeError(f"{call}: its first operand is no tensor")
    lead, inner = first.shape[0], math.prod(first.shape[1:-1])
    for rows in range(1, lead):
        if rows * inner >= _CHECKED_ROWS and (rows * inner % 16 == 0) == (lead * inner % 16 == 0):
            return rows
    return lead


def make_operands(call: Call, device: torch.device, rows: int | None = None) -> list[Any]:
    """Random operands of ``call``, of its first ``rows`` clips or rows where that is given; the same every time."""
    generator = torch.Generator(device).manual_seed(0)
    names, first = call.names, call.operands[0]
    lead = first.shape[0] if isinstance(first, Layout) else 0
    made: list[Any] = []
    for name, x in zip(names, call.operands, strict=True):
        if not isinstance(x, Layout):
            made.append(x)
            continue
        led = rows is not None and name not in _PARAMETERS and x.shape[:1] == (lead,)
        shape = (rows or 0, *x.shape[1:]) if led else x.shape
        once = tuple(size if stride else 1 for size, stride in zip(shape, x.stride, strict=True))  # not yet expanded
        values = _values(name, once, x.dtype, device, generator)
        laid = torch.empty_strided(once, x.stride, dtype=x.dtype, device=device).copy_(values)
        made.append(laid.expand(shape))
    if rows is not None and {"out", "lse"} <= set(names):  # a backward's own forward must have made them
        made = _with_forward(call, names, made)
    return made


def _values(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Tensor:
    if dtype == torch.uint8:  # pixels, or slopes' codes
        return torch.randint(0, 250, shape, dtype=dtype, device=device, generator=generator)
    if not dtype.is_floating_point:  # tokens of groups: each once
        return torch.randperm(math.prod(shape), device=device, generator=generator).view(shape)
    if name == "bound":  # beyond what products of the numbers below come to
        return torch.full(shape, 4.0, device=device)
    if name in ("rstd", "x_rstd", "factor", "scale", "weight_scale"):
        return torch.rand(shape, device=device, generator=generator) + 0.5
    if name in ("w1", "w2", "folded", "widening", "narrowing"):
        return torch.randn(shape, device=device, generator=generator) * shape[-1] ** -0.5
    if name == "lse":  # of a call that is timed alone: no score exceeds it by much
        return torch.full(shape, 6.0, device=device)
    return torch.randn(shape, device=device, generator=generator)


def _with_forward(call: Call, names: list[str], made: list[Any]) -> list[Any]:
    forward = Call(call.operator.removesuffix("_backward"), ())
    given = dict(zip(names, made, strict=True))
    with plain_torch():
        out, lse = OPERATORS[forward.operator](*(given[name] for name in forward.names))
    given |= {"out": out, "lse": lse}
    return [given[name] for name in names]


def _wide(x: Any) -> Any:
    if isinstance(x, torch.dtype):
        return torch.float64 if x.is_floating_point else x
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


class _Rounded(TorchDispatchMode):
    """Every operator's float32 result is rounded to ``dtype``, as torch's own operators round theirs."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kept = getattr(func, "overloadpacket", None) in _KEPT or getattr(func, "is_view", False)
        if isinstance(result, Tensor) and result.dtype == torch.float32 and not kept:
            return result.to(self.dtype).to(torch.float32)
        return result
