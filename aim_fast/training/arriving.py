"""A number that a device has yet to compute, on its way to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class Arriving:
    """The value of a tensor of one element. Asking for it waits for what was launched before this was made, and not, as
    the tensor's own ``item()`` does, for all that was launched since."""

    def __init__(self, scalar: Tensor) -> None:
        self._scalar, self._there = scalar, None
        if scalar.is_cuda:
            self._scalar, self._there = scalar.to("cpu", non_blocking=True), torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(scalar.device))

    def item(self) -> float:
        if self._there is not None:
            self._there.synchronize()
        return self._scalar.item()
