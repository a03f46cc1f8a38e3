"""A training step captured whole as a CUDA graph: forward, loss, backward and optimiser in one launch.

Shapes are static: inputs are copied into the graph's own tensors and the graph is replayed. The first steps run as
they are, on a side stream, and train like any other; they give the optimiser its state and the libraries their
workspaces, which a capture must find. Source: PyTorch's notes on CUDA graphs, whole-network capture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from aim_fast.errors import TrainingError, UsageError
from aim_fast.training.devices import Place

WARM_UP = 3  # steps before the capture


class GraphedStep:
    """``step(*inputs)`` trains on one batch and returns its loss, a new scalar on the device.

    ``loss(*inputs)`` gives the scalar loss, ``parameters`` are what it trains; ``clip_norm`` limits their gradient's
    norm, 0 for no limit. Learning rates are read at every replay, set them with ``set_learning_rate``; random numbers
    of the forward follow ``torch.manual_seed``. Raises TrainingError for inputs of other shapes than the captured.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        clip_norm: float = 0.0,
    ) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.parameters = parameters
        self.clip_norm = clip_norm
        self._seen = 0
        self.graph: torch.cuda.CUDAGraph | None = None  # once it is captured
        self._inputs: list[Tensor] = []
        self._loss = torch.empty(0)  # where a replay leaves the loss
        set_capturable(optimizer, True)

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.graph is None:
            if self._seen < WARM_UP:
                self._seen += 1
                return self._aside(*inputs)
            self.graph = self._capture(*inputs)
        for held, given in zip(self._inputs, inputs, strict=True):
            if held.shape != given.shape or held.dtype != given.dtype:
                raise TrainingError(
                    f"the captured step takes {held.dtype} {list(held.shape)}, not {given.dtype} {list(given.shape)}: "
                    "train without --cuda-graph"
                )
            held.copy_(given)
        self.graph.replay()
        return self._loss.clone()

    def _aside(self, *inputs: Tensor) -> Tensor:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _weights_cast_each_time():
            loss = self.eager(*inputs).clone()
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _capture(self, *inputs: Tensor) -> torch.cuda.CUDAGraph:
        self._inputs = [x.clone() for x in inputs]
        graph = torch.cuda.CUDAGraph()
        # the loader's threads go on allocating meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"), _weights_cast_each_time():
            self._loss = self.eager(*self._inputs)
        return graph

    def eager(self, *inputs: Tensor) -> Tensor:
        """The step without a graph: what is captured."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(*inputs)
        loss.backward()
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def check_cuda_graph(place: Place, accumulate: int) -> None:
    """Raises UsageError where a step cannot be captured: on a CPU, in several processes, in batches, or in fp16."""
    if place.device.type != "cuda":
        raise UsageError(f"--cuda-graph captures a step on a CUDA device, not on {place.device.type}: leave it out")
    if place.world > 1:
        raise UsageError(f"--cuda-graph captures the step of one process, not of {place.world}: leave it out")
    if accumulate > 1:
        raise UsageError(f"--cuda-graph captures a step of one batch, not of {accumulate}: give a larger --batch-size")
    if place.dtype is torch.float16:
        raise UsageError("--cuda-graph has no loss scaling, which fp16 needs: use --precision bf16 or fp32")


def set_capturable(optimizer: torch.optim.Optimizer, capturable: bool) -> None:
    """Keeps learning rates in tensors that a captured step reads, or as plain numbers."""
    for group in optimizer.param_groups:
        device = group["params"][0].device
        rate = float(group["lr"])
        group["lr"] = torch.tensor(rate, device=device) if capturable else rate
        group["capturable"] = capturable


@contextlib.contextmanager
def _weights_cast_each_time() -> Iterator[None]:
    """Autocast's copies of the weights must be made within the graph that reads them."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
