"""A GPU that is not there: PyTorch's and the project's Python run as on one, on tensors without data.

In a block of :func:`fake_gpu` torch's fake tensors on "cuda" pass for tensors on a GPU of an architecture, through
forward, backward and optimiser. Nothing is computed, no driver is asked, and the batch takes no room. What torch itself
asks a driver for is answered here: the place of a tensor, which autograd's engine and autocast ask for in C++, and the
choice among torch's attentions. Launches of Triton kernels are handed to the caller.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from aim_kernels import block_shapes, optional_triton, packed, registration

_CUDA, _NOWHERE = torch.device("cuda"), torch.device("meta")


@contextlib.contextmanager
def fake_gpu(architecture: int, launch: Callable[..., None]) -> Iterator[None]:
    """``architecture`` is 10 · major + minor; ``launch`` takes what ``triton.JITFunction.run`` takes.

    Kernels are launched by the committed block shapes. Raises RuntimeError where Triton is not installed.
    """
    if not optional_triton.INSTALLED:
        raise RuntimeError("a step is counted where Triton is installed, which launches kernels: pip install triton")
    from triton import JITFunction

    on_gpu = property(lambda x: x.fake_device.type == "cuda")
    with contextlib.ExitStack() as stack:
        for where, name, value in (
            (registration, "_architecture", lambda index: architecture),
            (registration, "_modern", lambda index: True),
            (registration, "_multiprocessors", lambda index: 132),
            (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (JITFunction, "run", lambda *args, **kwargs: launch(*args, **kwargs)),
        ):
            stack.enter_context(mock.patch.object(where, name, value))
        stack.enter_context(mock.patch.object(FakeTensor, "is_cuda", on_gpu, create=True))
        stack.enter_context(mock.patch.object(packed, "place", _nowhere))  # a mock would hold what it is given
        stack.enter_context(mock.patch.object(packed.Packed, "is_cuda", True, create=True))
        for measured in (block_shapes.CHOSEN, *(operator.chosen for operator in registration.OPERATORS.values())):
            stack.enter_context(mock.patch.dict(measured, clear=True))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # backward here, where modes see it
        stack.enter_context(_autocast())
        for mode in (FakeTensorMode(), _Place(), _TorchAttention()):
            stack.enter_context(mode)
        yield


def _nowhere(x: Tensor) -> torch.device:
    return _NOWHERE


def move(model: nn.Module) -> None:
    """Replaces the meta tensors of ``model`` by fake ones on the GPU; one that two modules share stays one."""
    moved: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, old in held.items():
                if old is None:
                    continue
                if old not in moved:
                    new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=_CUDA)
                    moved[old] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                held[name] = moved[old]


class _Place(TorchDispatchMode):
    """Tells C++ that a tensor is nowhere: for one on "cuda" autograd's engine would ask the driver for a stream.
    Python reads where it is from the tensor itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return _NOWHERE
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == _NOWHERE:  # made in C++, like a tensor that said so
            kwargs["device"] = _CUDA
        return func(*args, **kwargs)


class _TorchAttention(TorchFunctionMode):
    """torch's choice among its attentions. On GPUs of sm_90 up it is cuDNN's for half precision without a mask
    (bench/results/nvidia-h200-step.json); for all else products and softmax are counted."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v = args[:3]
        masked = len(args) > 3 or any(kwargs.get(name) for name in ("dropout_p", "is_causal", "enable_gqa"))
        if masked or kwargs.get("attn_mask") is not None or q.dtype.itemsize != 2:
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
        scale = kwargs.get("scale")
        return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=scale)[0]


# Autocast, whose kernels in C++ ask where a tensor is: of torch's operators that have one the first cast to its dtype,
# the second to the widest of their operands, and all others to float32 (aten/src/ATen/autocast_mode.h)
_NARROW = (
    *("_convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d"),
    *("conv_transpose3d", "convolution", "linear", "matmul", "mm", "mv", "bmm", "addmm", "addmv", "addr", "addbmm"),
    *(
        "baddbmm",
        "einsum",
        "chain_matmul",
        "linalg_multi_dot",
        "linalg_vecdot",
        "prelu",
        "scaled_dot_product_attention",
    ),
)
_WIDEST = (
    *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sampler", "index_put", "scatter_add"),
    *("tensordot", "vdot"),
)


@contextlib.contextmanager
def _autocast() -> Iterator[None]:
    """A block in which autocast on "cuda" casts fake tensors."""
    cast: dict[Tensor, Tensor] = {}  # of parameters, whose cast is kept while autocast is on
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced, which ends with the library
        for qualified in torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA"):
            namespace, _, named = qualified.partition("::")
            name, _, overload = named.partition(".")
            if namespace == "aten" and (name in _NARROW or not (name in _WIDEST or name.startswith("_"))):
                operator = getattr(getattr(torch.ops.aten, name), overload or "default")
                library.impl(operator, _casting(operator, name in _NARROW, cast), "AutocastCUDA", allow_override=True)
    try:
        with mock.patch.object(torch, "clear_autocast_cache", cast.clear):
            yield
    finally:
        library._destroy()


def _casting(operator: Any, narrow: bool, kept: dict[Tensor, Tensor]) -> Callable[..., Any]:
    """``operator`` behind its casts."""
    names = [argument.name for argument in operator._schema.arguments]

    def to(dtype: torch.dtype, x: Tensor) -> Tensor:
        if not x.is_cuda or not x.is_floating_point() or x.dtype in (dtype, torch.float64):
            return x
        if not (narrow and x.is_leaf and x.requires_grad and torch.is_autocast_cache_enabled()):
            return x.to(dtype)
        if x not in kept:
            kept[x] = x.to(dtype)
        return kept[x]

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)):
            if "dtype" in names and not narrow:  # a sum or a softmax gives float32, of what it is given
                given = dict(zip(names, args)) | kwargs
                if given.get("dtype") is None and args[0].is_floating_point():
                    given["dtype"] = torch.float32
                return operator(**given)
            dtype = torch.get_autocast_dtype("cuda") if narrow else torch.float32
            return operator(*tree_map_only(Tensor, functools.partial(to, dtype), args), **kwargs)

    return run
