"""A training step captured as two CUDA graphs: forward, loss and backward of a batch, and clipping and optimiser.

Shapes are static: inputs are copied into the graph's own tensors and the graph is replayed; batches of other shapes run
as they are. The first steps run as they are too, and train like any other: they give the optimiser its state and the
libraries their workspaces, which a capture must find. The exchange between processes lies between the graphs, so each
process may run captured or not. Random numbers follow ``torch.manual_seed`` at each replay as they do without a graph.
Source: PyTorch's notes on CUDA graphs, whole-network capture.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aim_fast.errors import TrainingError, UsageError
from aim_fast.training.devices import Place
from aim_fast.training.flat_step import FlatStep
from aim_fast.training.recipe_groups import CudaGraph

WARM_UP = 3  # steps before a capture
TIMED = 3  # steps of each kind that are timed where the faster is to be found out
_FULL = 0.85  # of a device's memory: a graph keeps what its step needs, so more is left to the eager step
_EXCHANGED = 256 * 2**20  # bytes: more is exchanged while backward runs, as DistributedDataParallel does
_Out = TypeVar("_Out")


class GraphedStep(FlatStep):
    """A :class:`FlatStep` whose halves are replayed. Learning rates are read at every replay: ``set_learning_rate``.

    ``choose``: time a few steps as they are and a few replays, and keep the faster. ``say`` is given one line: which it
    was, or why nothing could be captured; training goes on as it is then. ``settled``: whether all that is done. Where
    batches change their shapes it is given a line on that as well.
    """

    def __init__(self, *step: Any, choose: bool = False, say: Callable[[str], None] = print, **more: Any) -> None:
        super().__init__(*step, **more)
        self.choose, self.say = choose, say
        self.settled = False
        self._finished = 0  # steps
        self._pool: Any = None
        self._batch: _Captured | None = None
        self._update: _Captured | None = None
        self._refused = False
        self._shapes: list[Any] = []  # of the last batch
        self._shapes_said = False
        self._seconds: dict[tuple[str, bool], list[float]] = {}  # by half, and whether it was captured
        set_capturable(self.optimizer, True)

    @property
    def graphed(self) -> bool:
        """Whether both halves are captured."""
        return self._batch is not None and self._update is not None

    def accumulate(self, *inputs: Tensor) -> Tensor:
        before, self._shapes = self._shapes, _shapes(inputs)
        if self._captures and self._batch is None and self._shapes == before:
            # what is kept of the parameters from step to step is made anew within the graph
            torch.autograd.graph.increment_version(self.parameters)
            self._batch = self._capture(self._add_gradient, inputs)
        if self._batch is None or _shapes(self._batch.inputs) != self._shapes:
            if self._captures and not self._shapes_said:
                self._shapes_said = True
                self.say("training step: batches change their shapes: those of others than before run as they are")
            return self._timed("batch", False, self._add_gradient, *inputs)
        return self._timed("batch", True, self._batch, *inputs)

    def finish(self) -> None:
        self._exchange()
        if self._captures and self._batch and self._update is None:
            self._update = self._capture(self._apply, ())
        if self._update is None:
            self._timed("update", False, self._apply)
        else:
            self._timed("update", True, self._update)
        # nothing on the host tells else that they have changed
        torch.autograd.graph.increment_version(self.parameters)
        self._finished += 1
        if not self.settled:
            self._settle()

    def forget(self) -> None:
        """Drops the graphs; they are captured again, where they are wanted."""
        self._batch = self._update = self._pool = None

    @property
    def _captures(self) -> bool:
        return not self._refused and self._finished >= WARM_UP + (TIMED if self.choose else 0)

    def _timed(self, name: str, captured: bool, run: Callable[..., _Out], *inputs: Tensor) -> _Out:
        if self.settled or not self.choose or self._finished < WARM_UP:
            return run(*inputs)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        out = run(*inputs)
        torch.cuda.synchronize()
        self._seconds.setdefault((name, captured), []).append(time.perf_counter() - begin)
        return out

    def _settle(self) -> None:
        if self._refused:
            self.settled = True
        elif not self.choose:
            self.settled = self.graphed
        elif self.graphed and self._finished >= WARM_UP + 2 * TIMED:
            self.settled = True
            eager, replayed = (
                1e3 * sum(statistics.median(self._seconds[half, captured]) for half in ("batch", "update"))
                for captured in (False, True)
            )
            figures = f"{replayed:.1f} ms captured in a CUDA graph, {eager:.1f} ms as it is"
            if replayed < eager:
                self.say(f"training step: {figures}: it is captured")
            else:
                self._refused = True
                self.forget()
                self.say(f"training step: {figures}: it is not captured")

    def _capture(self, half: Callable[..., Any], inputs: tuple[Tensor, ...]) -> _Captured | None:
        """A half, captured; None where that fails, with all as it was before but for a line that is said."""
        try:
            if self.choose and torch.cuda.max_memory_allocated() > _FULL * torch.cuda.mem_get_info()[1]:
                raise TrainingError(f"it takes more than {_FULL:.0%} of the memory")
            renew_gradient_nodes(self.parameters)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            return _Captured(half, inputs, self._pool)
        except Exception as error:
            first: BaseException = error  # the others say that the capture could not be ended
            while first.__context__:
                first = first.__context__
            reason = str(first).strip().partition("\n")[0] or type(first).__name__
        self._take_away()
        if self.scaler.is_enabled():
            self.scaler._per_optimizer_states.clear()
        for name in ("grad_scale", "found_inf"):
            vars(self.optimizer).pop(name, None)
        self._give_up(reason)
        return None

    def _give_up(self, reason: str) -> None:
        self._refused = True
        self.forget()
        renew_gradient_nodes(self.parameters)
        # kept by the version of a parameter, and thought to be made, may be what the capture never ran
        torch.autograd.graph.increment_version(self.parameters)
        self.say(f"training step: not captured in a CUDA graph, it runs as it is: {reason}")


class _Captured:
    """A function of tensors as a CUDA graph: called with others of the same shapes, it gives what it gave, in place."""

    def __init__(self, run: Callable[..., Any], inputs: tuple[Tensor, ...], pool: Any) -> None:
        self.inputs = [x.clone() for x in inputs]
        self.graph = torch.cuda.CUDAGraph()
        # the loader's threads go on allocating meanwhile
        captured = torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local")
        with _left_usable(self.graph, pool), _weights_cast_each_time(), captured:
            self.out = run(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given)
        self.graph.replay()
        return self.out


def _shapes(tensors: Iterable[Tensor]) -> list[Any]:
    return [(x.shape, x.dtype) for x in tensors]


def check_cuda_graph(place: Place) -> None:
    """Raises UsageError where no step can be captured: on a CPU."""
    if place.device.type != "cuda":
        raise UsageError(f"--cuda-graph captures a step on a CUDA device, not on {place.device.type}: leave it out")


def captures(asked: CudaGraph, place: Place, trained: Iterable[Tensor]) -> bool:
    """Whether a step that trains these tensors is captured, where that can be."""
    if asked == "auto" and place.world > 1 and sum(tensor.nbytes for tensor in trained) > _EXCHANGED:
        return False
    return asked != "off" and place.device.type == "cuda"


def set_capturable(optimizer: torch.optim.Optimizer, capturable: bool) -> None:
    """Keeps learning rates in tensors that a captured step reads, or as plain numbers."""
    # steps before the capture run without one, as they must
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
    for group in optimizer.param_groups:
        device = group["params"][0].device
        rate = float(group["lr"])
        group["lr"] = torch.tensor(rate, device=device) if capturable else rate
        group["capturable"] = capturable


def renew_gradient_nodes(parameters: list[nn.Parameter]) -> None:
    """Lets autograd make the nodes anew in which gradients end.

    Such a node belongs to the stream on which it was made, and lives as long as any graph of an earlier forward that
    somebody holds. On the default stream it would draw that into the capture, which breaks it.
    """
    for parameter in parameters:
        held = parameter.data
        # torch drops the node of a parameter that becomes one of another data type
        parameter.data = held.new_empty(0, dtype=torch.float16 if held.dtype != torch.float16 else torch.float32)
        parameter.data = held


_BROKEN: list[torch.cuda.CUDAGraph] = []  # torch's allocators may go on asking a graph that was not ended


@contextlib.contextmanager
def _left_usable(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """A block that captures: if it fails, what torch then leaves as it is within a capture is set back.

    That is the current stream, the pool that memory is taken from, and the state of the random numbers.
    """
    stream, device = torch.cuda.current_stream(), torch.cuda.current_device()
    generator = torch.cuda.default_generators[device]
    seed, offset = generator.initial_seed(), generator.get_offset()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        try:
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
            _BROKEN.append(graph)
        except RuntimeError:  # something else failed, and the capture came to its end
            graph.reset()
        fresh = torch.Generator(torch.device("cuda", device)).manual_seed(seed)
        fresh.set_offset(offset)
        generator.graphsafe_set_state(fresh.graphsafe_get_state())
        raise


@contextlib.contextmanager
def _weights_cast_each_time() -> Iterator[None]:
    """Autocast's copies of the weights must be made within the graph that reads them."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
