"""Equal adapters formed together, as one differentiable function: a few launches for all of them, forward and backward.

The formulas are those of :mod:`aim_kernels.formed_adapter`, of n adapters stacked, [n, H, D] and so on; those that read
an output projection are the first ones, then those that read a norm's x̂. Back from the gradients of what was formed,
with G_W and G_b those of W1 Wo and of b1 + W1 bo, or of W1·diag(γ) and of b1 + W1 β:

    dW1 = G_W Woᵀ + G_b boᵀ,  or  G_W·diag(γ) + G_b βᵀ,   db1 = G_b,   dW2 = s·G_w2,   db2 = s·G_b2

Biases are given several times, so that a sub-block leaves their gradients in as many parts of its rows, which are added
here for all adapters at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_kernels.formed_adapter import AdapterUse
from aim_kernels.weights import FormedAdapter, apply


def form_stacked(uses: Sequence[AdapterUse], dtype: torch.dtype, parts: int) -> list[FormedAdapter]:
    """``uses`` of equal shapes and dtypes, their products in ``dtype``; of each bias ``parts``."""
    order = sorted(range(len(uses)), key=lambda place: _kind(uses[place]))
    stack = _Stack([uses[place] for place in order], dtype, parts)
    formed = apply(_Form, stack, *(tensor for use in stack.uses for tensor in use.weights))
    found = {place: FormedAdapter(*formed[number :: len(order)]) for number, place in enumerate(order)}
    return [found[place] for place in range(len(uses))]


def _kind(use: AdapterUse) -> int:
    """Those that read a projection come first, then those that read a norm, which have a bias beside them; all that
    have one lie side by side."""
    if use.reads is not None:
        return 0 if use.beside is None else 1
    if use.norm is not None:
        return 2
    return 4 if use.beside is None else 3


class _Stack(NamedTuple):
    uses: list[AdapterUse]
    dtype: torch.dtype
    parts: int

    def scaled(self, *lists: Sequence[Tensor]) -> list[list[Tensor]]:
        """Lists of a tensor a use, each times the use's scale."""
        places = [place for place, use in enumerate(self.uses) if use.scale != 1.0]
        out = [list(found) for found in lists]
        if places:
            factors = [self.uses[place].scale for place in places] * len(out)
            found = iter(torch._foreach_mul([one[place] for one in out for place in places], factors))
            for one in out:
                for place in places:
                    one[place] = next(found)
        return out


class _Form(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stack: _Stack, *row: Tensor) -> tuple[Tensor, ...]:
        uses, dtype, parts = stack
        w1, b1, w2, b2 = (list(row[place::4]) for place in range(4))
        reading, like = [use.reads for use in uses if use.reads is not None], w1[0]
        norms = [use.norm for use in uses if use.norm is not None]
        besides = [(number, use.beside) for number, use in enumerate(uses) if use.beside is not None]
        n, r, shifted = len(uses), len(reading), len(reading) + len(norms)
        shifts: list[Any] = [*(bias for _, bias in reading), *(norm.bias for norm in norms)]
        around = [*shifts, *(norm.weight for norm in norms), *(bias for _, bias in besides)]
        vectors = torch.stack(around).to(like.dtype) if around else like.new_empty(0)
        shift, scale, beside = vectors.split([shifted, len(norms), len(besides)])
        wide = torch.stack(w1[:shifted]) if shifted else None
        w2, b2 = stack.scaled(w2, b2)
        read, other = (like.new_empty((size, *like.shape), dtype=dtype) for size in (r, n - r))
        second = like.new_empty((n, *w2[0].shape), dtype=dtype)
        if wide is not None and norms:
            torch.mul(wide[r:], scale[:, None], out=other[: len(norms)])
        torch._foreach_copy_(_each(read, other[len(norms) :], second), [*w1[:r], *w1[shifted:], *w2])
        first_biases, second_biases = torch.stack(b1), torch.stack(b2)
        output = None
        with torch.autocast(like.device.type, enabled=False):
            if r:
                output = torch.stack([weight for weight, _ in reading]).to(dtype)
                read = read @ output
            if wide is not None:
                first_biases[:shifted, :, None].baddbmm_(wide, shift[:, :, None])
        with_beside = second_biases.clone()
        if besides:
            with_beside[besides[0][0] : besides[0][0] + len(besides)].add_(beside)
        ctx.stack = stack
        ctx.save_for_backward(output, scale, shift)
        ctx.set_materialize_grads(False)
        low = [torch.empty_like(biases, dtype=dtype) for biases in (first_biases, with_beside)]
        torch._foreach_copy_(low, [first_biases, with_beside])
        constants = _each(*low)
        ctx.mark_non_differentiable(*constants)
        return (
            *_each(read, other),
            *_copies(first_biases, parts),
            *_each(second),
            *_copies(second_biases, parts),
            *constants,
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (output, scale, shift), stack, n = ctx.saved_tensors, ctx.stack, len(ctx.stack.uses)
        like = stack.uses[0].weights
        nothing = [partial(weight.new_zeros, weight.shape, dtype=stack.dtype) for weight in like]
        nothing[1::2] = [partial(bias.new_zeros, (stack.parts, *bias.shape)) for bias in like[1::2]]
        w1, b1, w2, b2 = (
            [zeros() if gradient is None else gradient for gradient in gradients[place * n : (place + 1) * n]]
            for place, zeros in enumerate(nothing)
        )
        first, second = (weight.new_empty((n, *weight.shape)) for weight in like[::2])
        first_biases, second_biases = torch.stack(b1).sum(1), torch.stack(b2).sum(1)
        r = 0 if output is None else len(output)
        with torch.autocast(like.w1.device.type, enabled=False):
            if r:
                w1[:r] = (torch.stack(w1[:r]) @ output.transpose(1, 2)).unbind(0)
            torch._foreach_copy_(_each(first, second), [*w1, *w2])
            shifted = len(shift)
            if len(scale):
                first[shifted - len(scale) : shifted].mul_(scale[:, None])
            if shifted:
                first[:shifted].baddbmm_(first_biases[:shifted, :, None], shift[:, None, :])
        w2, b2 = stack.scaled(second.unbind(0), second_biases.unbind(0))
        return None, *(x for use in zip(first.unbind(0), first_biases.unbind(0), w2, b2) for x in use)


def _each(*stacks: Tensor) -> list[Tensor]:
    return [one for stack in stacks for one in stack.unbind(0)]


def _copies(biases: Tensor, parts: int) -> list[Tensor]:
    """[parts, ·] of each of ``biases`` [n, ·]."""
    return _each(biases[:, None].expand(-1, parts, -1))
