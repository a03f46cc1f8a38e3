"""What one training step launches on a GPU, counted without one: kernels, bytes, FLOPs and the highest memory.

The step is that of :mod:`bench.step`, of one side: ``published`` or a memory word. It runs on tensors that have no data
(torch's fake tensors) and say that they are on a GPU, so the same Python chooses, allocates and launches as there, the
implementations of the project's operators included; a launch of a Triton kernel is written down instead of made.
Neither a GPU nor a driver is needed, and the batch takes no room. Triton must be installed, though it compiles nothing.

Exact: which operators and Triton kernels run, on what, how often; what PyTorch's allocator would hold, but for the
workspaces of libraries. By rule: how many kernels an operator of ATen is (:func:`_hidden`, :func:`_launches_of_lists`),
and bytes: every operand counts once, read or written. Left out are caches, what libraries move besides, and memsets.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from aim_kernels import hold_trunk
from aim_kernels.block_shapes import LIBRARY, candidates, committed, trying
from aim_kernels.registration import OPERATORS
from aim_kernels.scaled_rows import EIGHT_BITS
from bench.fake_gpu import fake_gpu, move
from bench.step import make_sides, training_step

WARM_UP = 2  # steps before the counted one, which has gradients and AdamW's moments


class Kernel(NamedTuple):
    """One kernel, or what a library runs for one product."""

    name: str  # of ATen's operator, without its overload, or of the Triton function
    own: bool  # a Triton kernel of aim_kernels
    phase: str  # forward, backward or optimizer
    read: int  # bytes
    written: int
    flop: float  # of its products, two a multiply-add
    largest: int  # elements of its largest operand
    product: tuple[int, int, int] | None = None  # rows, columns and inner depth of a matrix product, all batches' rows
    dtype: torch.dtype | None = None  # of its narrowest operand: statistics, scales and sums are wider
    length: int = 0  # of the sequences of one of torch's attentions

    @property
    def bytes(self) -> int:
        return self.read + self.written


class CountedStep(NamedTuple):
    """One step: its kernels in order, the most bytes held at once, and the sizes that shares are taken of."""

    kernels: list[Kernel]
    peak_bytes: int  # with weights, gradients and moments, as torch.cuda.max_memory_allocated() tells
    held_bytes: int  # of them between steps
    largest_parameter: int  # elements
    tokens: int  # of all clips and frames
    width: int
    depth: int  # blocks

    @property
    def small(self) -> list[Kernel]:
        """Kernels whose operands are all of the size of a parameter, or of two stacked ones."""
        return [kernel for kernel in self.kernels if kernel.largest <= 1.25 * self.largest_parameter]

    @property
    def vectors(self) -> float:
        """Bytes outside matrix products, a token and block, in vectors of the model's width, two bytes a channel."""
        outside = sum(kernel.bytes for kernel in self.kernels if not kernel.product)
        return outside / (2 * self.tokens * self.width * self.depth)


@functools.cache
def count_step(
    model: str = "aim_vit_b16_clip",
    side: str = "fast",
    frames: int = 8,
    batch: int = 32,
    architecture: int = 90,
    dtype: torch.dtype = torch.bfloat16,
    own_products: bool = False,
) -> CountedStep:
    """Counts a step of ``model`` on a GPU of ``architecture`` (10 · major + minor), by the committed block shapes; with
    ``own_products`` as where a tuning chose ours wherever the committed one is a library's.

    With float8_e4m3fn the frozen products are in eight bits, those of ``published`` in bfloat16. Raises RuntimeError
    where Triton is not installed, KeyError for a side that :func:`bench.step.make_sides` has not.
    """
    scaled, dtype = dtype == EIGHT_BITS and side != "published", torch.bfloat16 if dtype == EIGHT_BITS else dtype
    with torch.device("meta"):
        chosen = make_sides(model, frames, "meta", dtype)[side].train()
    counting = _Counting()
    with fake_gpu(architecture, counting.launch), counting:
        move(chosen)
        if side != "published":
            hold_trunk(chosen, EIGHT_BITS if scaled else dtype)  # what of it is held on a GPU alone
        size = chosen.img_size
        clips = torch.empty(batch, frames, size, size, 3, dtype=torch.uint8, device="cuda")
        labels = torch.empty(batch, dtype=torch.long, device="cuda")
        step = training_step(chosen, clips, labels, "cuda", dtype)
        with trying({}) as trial:
            step()
        libraries = [launch for launch in trial.asked if own_products and launch.entry == "wide_product"]
        libraries = [launch for launch in libraries if committed(launch) == LIBRARY]
        with trying({launch: candidates(launch)[1] for launch in libraries}):
            for _ in range(WARM_UP - 1):
                step()
            held = counting.start()
            step()
    return CountedStep(
        counting.kernels,
        counting.peak,
        held,
        max(parameter.numel() for parameter in chosen.parameters()),
        batch * frames * chosen.num_tokens,
        chosen.embed_dim,
        chosen.depth,
    )


class _Counting(TorchDispatchMode):
    """Writes down what is launched, and what is held, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.held = self.peak = 0
        self._filled = WeakIdKeyDictionary()  # of every storage on the GPU: whether anything was written there
        self._phase = "forward"

    def start(self) -> int:
        """Forgets the kernels and the peak of before; returns the bytes that are held."""
        self.kernels, self.peak, self._phase = [], self.held, "forward"
        return self.held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return func(*args)
        with self:  # what an operator is made of is counted in its place
            if func.namespace == "aim" and func._opname in OPERATORS:
                return OPERATORS[func._opname](*args, **kwargs)
            if (made := func.decompose(*args, **kwargs)) is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        self._note(func, args, kwargs, out)
        return out

    def launch(self, function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """A launch of a Triton kernel: what no kernel has written yet is written by it, all else is read."""
        name, given = function.fn.__name__, dict(zip(function.arg_names, args)) | kwargs
        flop = OWN_PRODUCTS[name](given) if name in OWN_PRODUCTS else 0.0
        if name in _OWN_PART:
            given["dqkv_ptr"] = _OWN_PART[name](given["dqkv_ptr"])
        pointers = [x for x in given.values() if isinstance(x, Tensor)]
        read, written = (
            [x for x in pointers if self._filled[x.untyped_storage()] == filled] for filled in (True, False)
        )
        if name in _OWN_IN_PLACE and self._filled[(over := given[_OWN_IN_PLACE[name]]).untyped_storage()]:
            written.append(over)
        product = (given["M"], given["W"], given["D"]) if name in _OWN_MATRIX else None
        self._add(name, read, written, flop, product, own=True)

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for x in made:
            self._hold(x)
        name = func._opname.rstrip("_")
        operands = list(_operands(func, args, kwargs))
        changed = [x for x, is_changed in operands if is_changed]
        if func.is_view or name in _LAUNCH_NOTHING or not (changed or made):
            return
        read = [x for x, is_changed in operands if not (is_changed and name in _OVERWRITE)]
        written = changed or made
        for extra in _hidden(func, read, written):
            self._add(extra, read[:1], written)
        flop = _flop(func, args, kwargs, out)
        attention = "attention" in name
        product = _product(read[:2] if name == "_scaled_mm" else read) if flop and not attention else None
        length = read[0].shape[-2] if attention else 0
        self._add(name, read, written, flop, product, length, times=_launches_of_lists(func, args))
        if product and product[2] >= _DEEP and product[0] * product[1] < _FEW_TILES:
            self._add("split-K sum", written, written)

    def _add(
        self,
        name: str,
        read: list[Tensor],
        written: list[Tensor],
        flop: float = 0.0,
        product: tuple[int, int, int] | None = None,
        length: int = 0,
        own: bool = False,
        times: int = 1,
    ) -> None:
        for x in written:
            self._filled[x.untyped_storage()] = True
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward or self._phase != "forward":
            self._phase = "backward" if in_backward else "optimizer"
        largest = max((_elements(x) for x in (*read, *written)), default=0)
        dtype = min((x.dtype for x in read), key=lambda dtype: dtype.itemsize, default=None)
        one = Kernel(name, own, self._phase, _bytes(read), _bytes(written), flop, largest, product, dtype, length)
        self.kernels += [one._replace(read=one.read // times, written=one.written // times)] * times

    def _hold(self, x: Tensor) -> None:
        """Counts the storage of a tensor that an operator gave, until it is freed."""
        storage = x.untyped_storage()
        if storage in self._filled or x.device.type != "cuda":
            return
        self._filled[storage] = False
        size = -(-storage.nbytes() // _ALLOCATED) * _ALLOCATED
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.held -= size


def _operands(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Tensor, bool]]:
    """Every tensor that an operator is given, and whether it writes there."""
    schema = func._schema.arguments
    given = {argument.name: x for argument, x in zip(schema, args)} | kwargs
    for argument in schema:
        changed = argument.alias_info is not None and argument.alias_info.is_write
        for x in tree_leaves(given.get(argument.name)):
            if isinstance(x, Tensor):
                yield x, changed


def _elements(x: Tensor) -> int:
    """Those that lie in memory: a dimension that is expanded does not."""
    return math.prod(size for size, stride in zip(x.shape, x.stride()) if stride)


def _bytes(tensors: list[Tensor]) -> int:
    """Of all, each counted once."""
    apart = {(id(x.untyped_storage()), x.storage_offset(), x.shape, x.stride()): x for x in tensors}
    return sum(_elements(x) * x.dtype.itemsize for x in apart.values())


def _flop(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Of a product of ATen, in place or not, by torch's own formulas."""
    formula = flop_registry.get(getattr(torch.ops.aten, func._opname.rstrip("_"), None))
    return float(formula(*args, **kwargs, out_val=out)) if formula else 0.0


def _product(read: list[Tensor]) -> tuple[int, int, int]:
    """Rows, columns and inner depth of the product of the last two operands."""
    a, b = (x for x in read if x.dim() > 1) if len(read) == 2 else read[-2:]
    return a.shape[:-1].numel(), b.shape[-1], a.shape[-1]


def _hidden(func: Any, read: list[Tensor], written: list[Tensor]) -> list[str]:
    """What an operator of ATen launches beside the kernel of its name."""
    name = func._opname
    if name in ("addmm", "addmv") and read[0].dim() == written[0].dim():  # the product then adds to a copy
        return ["copy of the sum's first operand"]
    if name in ("select_backward", "slice_backward", "constant_pad_nd"):
        return ["fill"]
    if name == "_scaled_dot_product_cudnn_attention_backward":  # both seen in bench/results/nvidia-h200-profile.json
        return ["row sums of an attention's gradient", "narrowing of an attention's gradient"]
    return []


def _launches_of_lists(func: Any, args: Any) -> int:
    """Of an operator over lists of tensors: torch hands a launch so many tensors, and so many chunks of 65,536."""
    lists = [x for x in args if isinstance(x, list | tuple) and x and isinstance(x[0], Tensor)]
    if not func._opname.startswith(("_foreach", "_fused")) or not lists:
        return 1
    tensors, chunks = (110, 64, 48, 36, 30)[min(len(lists), 5) - 1], sum(-(-x.numel() // 65536) for x in lists[0])
    return max(-(-len(lists[0]) // tensors), -(-chunks // 320))


_ALLOCATED = 512  # bytes, of which PyTorch's allocator gives a multiple
_LAUNCH_NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
_OVERWRITE = {"copy", "fill", "zero", "bernoulli", "normal", "uniform", "_foreach_copy", "_foreach_zero"}
# weight gradients: cuBLAS splits so deep a product where too few tiles of 128 × 128 would fill a GPU, and sums after it
_DEEP, _FEW_TILES = 8192, 100 * 128 * 128

# FLOP of the products in Triton kernels, of their arguments by name


def _attention(factor: int, length: str) -> Callable[[Mapping[str, Any]], float]:
    """``factor`` FLOP a channel, query and key: 4 forward, two more for every further product."""
    return lambda given: factor * given["qkv_ptr"].numel() / 3 * given[length]


# a matrix product each, whatever else they do
_OWN_MATRIX = ("wide_product_forward_kernel", "wide_product_backward_kernel")
OWN_PRODUCTS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "spatial_attention_forward_kernel": _attention(4, "N"),
    "spatial_attention_backward_kernel": _attention(10, "N"),
    "spatial_attention_backward_queries_kernel": _attention(6, "N"),
    "spatial_attention_backward_keys_kernel": _attention(8, "N"),
    "temporal_attention_forward_kernel": _attention(4, "T"),
    "temporal_attention_backward_kernel": _attention(10, "T"),
    "group_attention_forward_kernel": _attention(4, "L"),
    "group_attention_backward_kernel": _attention(10, "L"),
    **dict.fromkeys(_OWN_MATRIX, lambda given: 2.0 * given["M"] * given["W"] * given["D"]),
    "adapter_forward_kernel": lambda given: 4.0 * given["M"] * given["D"] * given["H"],
    "adapter_backward_kernel": lambda given: 2.0 * given["M"] * given["D"] * given["H"] * (1 + given["NEEDS_DZ"]),
}
# of dqkv [F, N, 3, h, d], what a kernel writes that does not write all
_OWN_PART: dict[str, Callable[[Tensor], Tensor]] = {
    "spatial_attention_backward_queries_kernel": lambda dqkv: dqkv[:, :, :1],
    "spatial_attention_backward_keys_kernel": lambda dqkv: dqkv[:, :, 1:],
}
# what a kernel writes that may be an operand
_OWN_IN_PLACE = {"wide_slope_backward_kernel": "du_ptr"}
