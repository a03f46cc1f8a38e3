"""A training step in two halves that ask nothing of the host: the gradients of a batch, and what is done with them.

Gradients lie one behind the other in one buffer for each data type, so that several batches add up in a few launches
and several processes exchange them in one all-reduce. With W processes that each add the gradients of their share of a
loss that is a mean over all clips, the sum is what DistributedDataParallel's average of W times the shares is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

_ALIGNED = 64  # numbers: views begin where kernels may read several at once


class FlatStep:
    """``accumulate(*inputs)`` for each batch of a step, then ``finish()``.

    ``loss(*inputs)`` gives the scalar loss of a batch, ``parameters`` are what it trains; ``clip_norm`` limits the norm
    of the step's gradient, 0 for no limit; ``scaler`` scales losses where gradients are fp16; ``world`` processes add
    their gradients up; ``then()`` ends a step, on the device alone. Between steps ``parameter.grad`` is None.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        clip_norm: float = 0.0,
        scaler: torch.amp.GradScaler | None = None,
        world: int = 1,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        self.loss, self.optimizer, self.parameters, self.clip_norm = loss, optimizer, parameters, clip_norm
        self.scaler = scaler or torch.amp.GradScaler(parameters[0].device.type, enabled=False)
        self.world, self.then = world, then
        self.buffers, self._held = _flat(parameters)
        self._reached: set[int] = set()  # of the parameters, those that have had a gradient

    def __call__(self, *inputs: Tensor) -> Tensor:
        """A whole step on one batch: its loss, a new scalar on the device."""
        loss = self.accumulate(*inputs).clone()
        self.finish()
        return loss

    def accumulate(self, *inputs: Tensor) -> Tensor:
        """Adds the gradient of a batch's loss to the step's; the loss, a scalar that the next call may overwrite."""
        return self._add_gradient(*inputs)

    def finish(self) -> None:
        """Exchanges, clips and applies the step's gradient."""
        self._exchange()
        self._apply()
        torch.autograd.graph.increment_version(self.parameters)  # which a fused optimiser does not

    def _add_gradient(self, *inputs: Tensor) -> Tensor:
        loss = self.loss(*inputs)
        self.scaler.scale(loss).backward()
        found = [(number, p.grad) for number, p in enumerate(self.parameters) if p.grad is not None]
        self._reached.update(number for number, _ in found)
        torch._foreach_add_([self._held[number] for number, _ in found], [gradient for _, gradient in found])
        self._take_away()
        return loss.detach()

    def _exchange(self) -> None:
        for buffer in self.buffers if self.world > 1 else ():
            dist.all_reduce(buffer)

    def _apply(self) -> None:
        for number in self._reached:  # the optimiser leaves the others as they are
            self.parameters[number].grad = self._held[number]
        if self.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._take_away()
        torch._foreach_zero_(self.buffers)
        self.then()

    def _take_away(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _flat(parameters: Iterable[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """Buffers of zeros, one for each data type, and for each parameter its part, in the parameter's strides."""
    parameters = list(parameters)
    sizes: dict[torch.dtype, int] = {}
    places = []
    for parameter in parameters:
        start = sizes.get(parameter.dtype, 0)
        places.append(start)
        sizes[parameter.dtype] = start + -(-parameter.numel() // _ALIGNED) * _ALIGNED
    buffers = {dtype: torch.zeros(n, dtype=dtype, device=parameters[0].device) for dtype, n in sizes.items()}
    held = [buffers[p.dtype].as_strided(p.shape, p.stride(), start) for p, start in zip(parameters, places)]
    return list(buffers.values()), held
