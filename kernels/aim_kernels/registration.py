"""How an operator becomes ``torch.ops.aim.<name>``: one opaque schema with CPU, CUDA and fake implementations.

Opaque, because a decomposing operator would be taken apart by AOTAutograd and lose its CPU implementation. Outputs are
always fresh tensors in the layout that the fake promises; inputs are never written.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aim_kernels import optional_triton

Implementation = Callable[..., Any]


def register(name: str, schema: str, *, cpu: Implementation, cuda: Implementation, fake: Implementation) -> None:
    """Defines ``aim::<name>`` with its implementations; ``fake`` gives shapes, dtypes and layout only."""
    qualified = f"aim::{name}"
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, "CPU")(cpu)
    torch.library.impl(qualified, "CUDA")(_on_device_of_input(cuda))
    torch.library.register_fake(qualified)(fake)


def _on_device_of_input(implementation: Implementation) -> Implementation:
    """Triton launches on the current device, which need not be the one that holds the tensors."""

    def guarded(first: Tensor, *args: Any) -> Any:
        with torch.cuda.device(first.device):
            return implementation(first, *args)

    return guarded


def register_gradient(name: str, backward: Implementation, setup_context: Implementation) -> None:
    """Gives ``aim::<name>`` its autograd formula."""
    torch.library.register_autograd(f"aim::{name}", backward, setup_context=setup_context)


def register_autocast(name: str) -> None:
    """Under autocast, ``aim::<name>`` runs in the autocast dtype of its device."""
    library = torch.library.Library("aim", "FRAGMENT")
    _LIBRARIES.append(library)
    operator = getattr(torch.ops.aim, name).default

    for key, device in ((torch._C.DispatchKey.AutocastCPU, "cpu"), (torch._C.DispatchKey.AutocastCUDA, "cuda")):

        def cast(*args: Any, device: str = device) -> Any:
            dtype = torch.get_autocast_dtype(device)
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_AUTOCAST_KEYS[device])):
                return operator(*(_cast(x, dtype) for x in args))

        library.impl(name, cast, key.name)


def runs_triton(x: Tensor) -> bool:
    """Whether Triton kernels serve ``x``: a half or single precision tensor on a GPU of compute capability 8.0 up.

    Older GPUs, and all where Triton is not installed, run the plain-torch expression of every operator, and one warning
    says so.
    """
    if not x.is_cuda or x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return False
    return _modern(x.device.index or 0)


def architecture(x: Tensor) -> int:
    """10 · major + minor of the GPU that holds ``x``; 0 on a CPU, where kernels run in Triton's interpreter."""
    return _architecture(x.device.index or 0) if x.is_cuda else 0


@functools.cache  # asked at every launch
def _architecture(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def _modern(index: int) -> bool:
    if index not in _MODERN:
        major, minor = torch.cuda.get_device_capability(index)
        _MODERN[index] = major >= 8 and optional_triton.INSTALLED
        if not _MODERN[index]:
            name = torch.cuda.get_device_name(index)
            reason = f"has compute capability {major}.{minor}, below 8.0" if major < 8 else "is here without Triton"
            warnings.warn(f"{name} {reason}: aim_kernels runs plain torch there", stacklevel=3)
    return _MODERN[index]


def _cast(x: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
    return x.to(dtype) if floating else x


_MODERN: dict[int, bool] = {}
_LIBRARIES: list[torch.library.Library] = []
_AUTOCAST_KEYS = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}
