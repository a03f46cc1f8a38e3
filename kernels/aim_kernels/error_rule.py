"""The error rule that every operator is held to: no further from the truth than twice as far as plain torch.

    err(got) ≤ 2 · err(plain) + 1e-6,   err(x) = ‖x − truth‖ / ‖truth‖

``truth`` is float64; ``plain`` is what torch's own expression gives in the dtype of ``got``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def errors(got: Tensor, plain: Tensor, truth: Tensor) -> tuple[float, float]:
    """err(got) and err(plain)."""
    truth = truth.detach().double()
    scale = truth.norm().clamp_min(1e-30)
    ours, theirs = (((x.detach().double() - truth).norm() / scale).item() for x in (got, plain))
    return ours, theirs


def within(ours: float, theirs: float, times: float = 2.0, beside: float = 1e-6) -> bool:
    """Whether an error ``ours`` is no more than ``times`` that of plain torch, and ``beside``; not where it is NaN."""
    return ours <= times * theirs + beside


def hold(got: Tensor, plain: Tensor, truth: Tensor, times: float = 2.0, beside: float = 1e-6, name: str = "") -> None:
    """Raises AssertionError where the rule does not hold, or the shapes differ."""
    if got.shape != truth.shape:
        raise AssertionError(f"{name} {list(got.shape)} has not the truth's shape {list(truth.shape)}".strip())
    ours, theirs = errors(got, plain, truth)
    if not within(ours, theirs, times, beside):
        raise AssertionError(f"{name} error {ours:.3g}, plain torch loses {theirs:.3g}".strip())


def value_and_gradient(
    fused: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], x: Tensor
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """What :func:`hold` takes, of a function's value and of its gradient in ``x``."""
    flow = torch.randn_like(plain(x))
    found = []
    for function, dtype in ((fused, x.dtype), (plain, x.dtype), (plain, torch.float64)):
        leaf = x.detach().to(dtype, copy=True).requires_grad_()
        out = function(leaf)
        (gradient,) = torch.autograd.grad(out, leaf, flow.to(dtype))
        found.append((out.detach(), gradient))
    (value, gradient), (plain_value, plain_gradient), (true_value, true_gradient) = found
    return {"value": (value, plain_value, true_value), "gradient": (gradient, plain_gradient, true_gradient)}
