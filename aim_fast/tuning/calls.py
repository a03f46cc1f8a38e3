"""What a training step asks of the operators of aim_kernels: each call's name and operands, without their values.

Found by running the step on tensors that have no data (torch's fake tensors): nothing is computed, launched or
allocated, and neither gradients nor random numbers of the model change.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import aim_kernels
from aim_kernels.registration import OPERATORS

for _module in pkgutil.iter_modules(aim_kernels.__path__):  # a process that reads calls may have run no model
    if not _module.name.startswith("_"):
        importlib.import_module(f"aim_kernels.{_module.name}")

Plain = int | float | bool | str | None


class Layout(NamedTuple):
    """A tensor less its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{_name(self.dtype)}{list(self.shape)}"


class Call(NamedTuple):
    """An operator and its operands, in the order of its schema."""

    operator: str
    operands: tuple[Layout | torch.dtype | Plain, ...]

    def __str__(self) -> str:
        words = (_name(x) if isinstance(x, torch.dtype) else str(x) for x in self.operands)
        return f"{self.operator}({', '.join(words)})"

    @property
    def elements(self) -> int:
        """Of its first operand."""
        first = self.operands[0]
        return torch.Size(first.shape).numel() if isinstance(first, Layout) else 0

    @property
    def names(self) -> list[str]:
        """Of its operands."""
        schema = getattr(torch.ops.aim, self.operator).default._schema
        return [argument.name for argument in schema.arguments]


def encoded(call: Call) -> list[Any]:
    """What JSON holds of a call; :func:`decoded` makes it again."""
    operands: list[Any] = []
    for x in call.operands:
        if isinstance(x, Layout):
            operands.append({"shape": x.shape, "stride": x.stride, "of": _name(x.dtype)})
        else:
            operands.append({"dtype": _name(x)} if isinstance(x, torch.dtype) else x)
    return [call.operator, operands]


def decoded(content: Sequence[Any]) -> Call:
    """Raises KeyError, TypeError, ValueError or AttributeError for what :func:`encoded` never gives."""
    name, operands = content
    found: list[Any] = []
    for x in operands:
        if isinstance(x, dict) and "dtype" not in x:
            found.append(Layout(tuple(x["shape"]), tuple(x["stride"]), getattr(torch, x["of"])))
        else:
            found.append(getattr(torch, x["dtype"]) if isinstance(x, dict) else x)
    if name not in OPERATORS:
        raise KeyError(name)
    return Call(name, tuple(found))


def calls_of_step(model: nn.Module, losses: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Counter[Call]:
    """The calls of a forward and backward of ``losses(*inputs)``, a tensor, through ``model``, and how often each is.

    A backend that is forced is noted as "auto". Raises whatever a step raises that looks at values.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    recorder = _Recorder()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.random.fork_rng(devices=[]):
        fakes = [fake.from_tensor(x) for x in inputs]
        with recorder:
            loss = losses(*fakes).sum()
            if trained and loss.requires_grad:
                torch.autograd.grad(loss, trained, allow_unused=True)
    return recorder.calls


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aim":
            given = dict(kwargs or {})
            operands = list(args)
            for argument in func._schema.arguments[len(args) :]:
                operands.append(given.get(argument.name, argument.default_value))
            called = [
                "auto" if argument.name == "backend" and x != "reference" else _described(x)
                for argument, x in zip(func._schema.arguments, operands, strict=True)
            ]
            if not any(isinstance(x, list) for x in called):  # a list of tensors is none of what is tuned
                self.calls[Call(func._opname, tuple(called))] += 1
        return func(*args, **(kwargs or {}))


def _described(x: Any) -> Any:
    return Layout(tuple(x.shape), tuple(x.stride()), x.dtype) if isinstance(x, Tensor) else x


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
