"""What a block keeps for backward, by one word, and keeping torch.compile from keeping more.

    fast      what the backward's products read
    balanced  the residual stream and the spatial qkv; the rest is formed again
    lean      the block's input alone

A compiled step's forward and backward are one graph before they are cut apart, and equal nodes in it become one: what
backward forms again by the forward's own operators and operands is found there, and is then kept. So a backward forms
it from operands that a compiler cannot take for the forward's: copies that depend on the gradient. Those copied are
small, a norm's weights or an adapter; what grows with the batch is never copied. Source: torch._functorch's partitioner
(``fx_graph_cse`` and ``min_cut_rematerialization_partition``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aim_kernels.choices import Memory
from aim_kernels.registration import operator, ops

_WORDS = get_args(Memory)


def check_memory(memory: str) -> None:
    """Raises ValueError unless ``memory`` is one of the three words."""
    if memory not in _WORDS:
        raise ValueError(f"memory {memory!r} is none of {', '.join(_WORDS)}")


def run_again(function: Callable[..., Tensor], x: Tensor, *others: Any, dtype: torch.dtype) -> Tensor:
    """``function(x, *others)``, of which backward finds ``x`` alone and runs ``function`` on it again.

    ``x`` [B, T, N, D] is kept in ``dtype``, that of the products, where it is the narrower one: what those read of it
    is rounded to that anyway. Nothing random may be in ``function``: draw it outside, and hand it on.
    """
    kept = x.detach().to(dtype) if dtype.itemsize < x.dtype.itemsize else x.detach()
    stream, wide, differentiable = [x], x.dtype, x.requires_grad

    def run(kept: Tensor, *others: Any) -> Tensor:
        if stream:
            return function(stream.pop(), *others)
        _STATE.again = True
        try:
            # the leaf is what is kept, and not its wide copy, which then lives no longer than it is read
            return function(kept.detach().requires_grad_(differentiable).to(wide), *others)
        finally:
            _STATE.again = False

    return checkpoint(run, kept, *others, use_reentrant=False, preserve_rng_state=False)


def running_again() -> bool:
    """Whether this thread is in the second run of :func:`run_again`, whose result nobody reads."""
    return _STATE.again


class _State(threading.local):
    again = False


_STATE = _State()


def copied_for_backward(record: Any, g: Tensor) -> Any:
    """A record of weights, or None; where a compiler traces, copies that exist once the gradient ``g`` does."""
    if record is None or not torch.compiler.is_compiling():
        return record
    return type(record)(*[None if weight is None else ops.copy_after(weight, g) for weight in record])


def _copy(x: Tensor, after: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _fake(x: Tensor, after: Tensor) -> Tensor:
    return x.new_empty(x.shape)


operator("copy_after", "(Tensor x, Tensor after) -> Tensor", reference=_copy, fake=_fake)
