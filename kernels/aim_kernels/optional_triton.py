"""``triton`` and its language ``tl``, or a stand-in where Triton has no wheel.

Operator files take both names from here, so that each can be imported on any platform. Under the stand-in a kernel is
the plain function that was written, which nothing calls: :func:`aim_kernels.registration.runs_triton` is False, and
every operator runs its C++ or plain-torch path. Where Triton is, what kernels launch is seen by
:mod:`aim_kernels._launch_again`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

__all__ = ["INSTALLED", "cdiv", "forget", "next_power_of_2", "remembered", "tl", "triton"]


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up: Triton's own takes the host ten times as long, at every launch."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least one that is not below ``n``."""
    return 1 << (n - 1).bit_length()


class _StandIn:
    """What a kernel's file needs of Triton to be imported."""

    @staticmethod
    def jit(function: Callable[..., Any]) -> Callable[..., Any]:
        return function


def remembered(function: Callable[..., Any]) -> Any:
    """``function``, of tensors and constants, whose launches are remembered where Triton is."""
    return function


def forget() -> None:
    """Remembers no launches any more: the choice of a kernel or of its block shape changed."""


triton: Any
tl: Any
try:
    triton, tl = import_module("triton"), import_module("triton.language")
except ImportError:
    triton, tl = _StandIn(), None
else:
    again = import_module("aim_kernels._launch_again")
    triton, remembered, forget = SimpleNamespace(**{**vars(triton), "jit": again.jit}), again.Remembered, again.forget
INSTALLED = tl is not None
