"""How an operator becomes ``torch.ops.aim.<name>``: one opaque schema, its implementations, and which of them runs.

Opaque, because a decomposing operator would be taken apart by AOTAutograd and lose its CPU implementation. Outputs are
always fresh contiguous tensors, as the fake promises; inputs are never written. What runs is chosen call by call:

    triton     where all floating operands are of 8 to 32 bits on a GPU of compute capability 8.0 up, and
               ``fits`` says that its kernels serve these sizes
    cpp        where they are float32 or bfloat16 on a CPU and the C++ part is built
    reference  plain torch, everywhere else, and where the first operand is empty

What a tuning found (``Operator.chosen``) goes before these rules: another implementation for operands of a class.
An operand that is a dtype, that of the result, counts like a tensor of it.

This package calls them as ``ops.<name>``: the same, but that on a GPU torch's dispatcher, which takes the host longer
than a launch, is left out where nothing in it waits for a call, as within a function whose backward is written out.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from aim_kernels import extension, optional_triton
from aim_kernels.packed import Packed

Implementation = Callable[..., Any]
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn)


@dataclass(eq=False)
class Operator:
    """One of :data:`OPERATORS`: its implementations take the operands of its schema, in order.

    ``libraries`` are further ones by name, which run only where ``chosen`` names them for :meth:`shape_class`.
    """

    name: str
    reference: Implementation
    triton: Implementation | None = None
    cpp: Implementation | None = None
    fits: Callable[..., bool] | None = None
    libraries: Mapping[str, Implementation] = field(default_factory=dict)
    chosen: dict[Hashable, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._on_gpu = optional_triton.remembered(_on_device_of_first(self._choose))

    def __call__(self, *operands: Any) -> Any:
        """Runs the implementation that serves these operands."""
        if _plain:
            return self.run("reference", *operands)
        return self._on_gpu(*operands) if self.triton and operands[0].is_cuda else self._choose(*operands)

    def _choose(self, *operands: Any) -> Any:
        if self.chosen and (name := self.chosen.get(self.shape_class(*operands))):
            return self.run(name, *operands)
        if operands[0].numel():
            typed = [x for x in operands if isinstance(x, torch.dtype) or _floating(x)]
            if self.triton and runs_triton(*typed) and (self.fits is None or self.fits(*operands)):
                return self.triton(*operands)
            if self.cpp and extension.supports(*typed):
                return self.cpp(*operands)
        return self.run("reference", *operands)

    def run(self, name: str, *operands: Any) -> Any:
        """Runs the implementation of a name: "triton", "reference" or one of ``libraries``."""
        if name == "triton" and self.triton:
            return self.triton(*operands)
        result = (self.libraries.get(name) or self.reference)(*operands)
        return tuple(x.contiguous() for x in result) if isinstance(result, tuple) else result.contiguous()

    def shape_class(self, *operands: Any) -> tuple[Hashable, ...]:
        """What of the operands decides which implementation is fastest: all but how many rows or clips there are."""
        sizes = ((x.dtype, x.shape[1:]) if isinstance(x, Tensor) else x for x in operands)
        return (architecture(operands[0]), *sizes)


OPERATORS: dict[str, Operator] = {}
ops = SimpleNamespace()


def operator(
    name: str,
    schema: str,
    *,
    reference: Implementation,
    fake: Implementation,
    triton: Implementation | None = None,
    cpp: Implementation | None = None,
    fits: Callable[..., bool] | None = None,
    libraries: Mapping[str, Implementation] | None = None,
    setup_context: Implementation | None = None,
    backward: Implementation | None = None,
    autocast: bool = False,
) -> None:
    """Defines ``aim::<name>`` with its implementations.

    ``fake`` gives shapes, dtypes and layout only; ``setup_context`` and ``backward`` are its autograd formula, as of
    :func:`torch.library.register_autograd`. With ``autocast`` its first operand is cast to the autocast dtype.
    """
    qualified = f"aim::{name}"
    chosen = OPERATORS[name] = Operator(name, reference, triton, cpp, fits, libraries or {})
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    torch.library.impl(qualified, ("CPU", "CUDA"))(chosen)
    overload = getattr(torch.ops.aim, name).default
    torch.library.register_fake(qualified)(_known_to_inductor(overload, fake))
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    if autocast:
        _register_autocast(overload)
    setattr(ops, name, _undispatched(chosen, overload, autocast))


def alike(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A new contiguous tensor of the shape of ``x``: ``new_empty`` takes the host twice as long to read a shape."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


@contextmanager
def plain_torch() -> Iterator[None]:
    """A block in which every operator runs its reference."""
    global _plain
    _plain = True
    try:
        yield
    finally:
        _plain = False


def runs_triton(*typed: Tensor | torch.dtype) -> bool:
    """Whether Triton kernels serve these: of 8 to 32 bits, tensors on a GPU of compute capability 8.0 up.

    Older GPUs, and all where Triton is not installed, run the plain-torch expression of every operator, and one warning
    says so.
    """
    for x in typed:
        if isinstance(x, torch.dtype):
            served = x in TRITON_DTYPES
        else:
            served = x.is_cuda and x.dtype in TRITON_DTYPES and _modern(x.get_device())
        if not served:
            return False
    return True


def architecture(x: Tensor) -> int:
    """10 · major + minor of the GPU that holds ``x``; 0 on a CPU, where kernels run in Triton's interpreter."""
    return _architecture(x.device.index or 0) if x.is_cuda else 0


def architecture_of(device: torch.device) -> int:
    """The same of a device."""
    return _architecture(device.index or 0) if device.type == "cuda" else 0


@functools.cache  # asked at every launch
def _architecture(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def multiprocessors(x: Tensor) -> int:
    """Of the GPU that holds ``x``; 1 on a CPU."""
    return _multiprocessors(x.device.index or 0) if x.is_cuda else 1


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@functools.cache
def _modern(index: int) -> bool:
    modern, installed = _architecture(index) >= 80, optional_triton.INSTALLED
    if not (modern and installed):
        name, capability = torch.cuda.get_device_name(index), _architecture(index) / 10
        reason = "is here without Triton" if modern else f"has compute capability {capability}, below 8.0"
        warnings.warn(f"{name} {reason}: aim_kernels runs plain torch there", stacklevel=4)
    return modern and installed


def _undispatched(operator: Operator, overload: torch._ops.OpOverload, autocast: bool) -> Implementation:
    def call(first: Tensor, *others: Any) -> Any:
        if (
            torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or not first.is_cuda
            or torch._C._len_torch_dispatch_stack()
            or type(first) is Packed
            or (autocast and torch.is_autocast_enabled("cuda") and first.dtype != torch.get_autocast_dtype("cuda"))
        ):
            return overload(first, *others)
        if not autocast:
            return operator(first, *others)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_AUTOCAST_KEYS["cuda"])):
            return operator(first, *others)

    return call


def _on_device_of_first(implementation: Implementation) -> Implementation:
    """Triton launches on the current device, which need not be the one that holds the tensors."""

    def guarded(first: Tensor, *others: Any) -> Any:
        if not torch.cuda.is_initialized() or first.get_device() == torch.cuda.current_device():
            return implementation(first, *others)  # without CUDA it is a fake that says so
        with torch.cuda.device(first.device):
            return implementation(first, *others)

    return guarded


def _known_to_inductor(overload: torch._ops.OpOverload, fake: Implementation) -> Implementation:
    """``fake``, which where inductor is loaded enters the operator in its table first, as one that is called as it is.

    For an operator that is not in its table, inductor writes out all that led to the operands, 17 times more text with
    each block, before it decides the same. Nothing is imported for it: inductor is there before it traces a graph, and
    a trace asks for the fake of every operator.
    """

    def entered(*operands: Any) -> Any:
        lowering = sys.modules.get("torch._inductor.lowering")
        if lowering is not None and overload not in lowering.lowerings:
            lowering.make_fallback(overload)
        return fake(*operands)

    return entered


def _register_autocast(overload: torch._ops.OpOverload) -> None:
    library = torch.library.Library("aim", "FRAGMENT")
    _LIBRARIES.append(library)
    for device, key in _AUTOCAST_KEYS.items():

        def cast(first: Tensor, *others: Any, device: str = device, key: torch._C.DispatchKey = key) -> Any:
            dtype = torch.get_autocast_dtype(device)
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
                return overload(_cast(first, dtype), *others)

        library.impl(overload._opname, cast, key.name)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if _floating(x) and x.dtype != torch.float64 else x


def _floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype.is_floating_point


_plain = False
_LIBRARIES: list[torch.library.Library] = []  # what is registered through one lives as long as it
_AUTOCAST_KEYS = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}
