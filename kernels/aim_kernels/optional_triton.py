"""``triton`` and its language ``tl``, or a stand-in where Triton has no wheel.

Operator files take both names from here, so that each can be imported on any platform. Under the stand-in a kernel is
the plain function that was written, which nothing calls: :func:`aim_kernels.registration.runs_triton` is False, and
every operator runs its C++ or plain-torch path.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["INSTALLED", "tl", "triton"]


class _StandIn:
    """What a kernel's file needs of Triton to be imported."""

    @staticmethod
    def jit(function: Callable[..., Any]) -> Callable[..., Any]:
        return function


triton: Any
tl: Any
try:
    triton, tl = import_module("triton"), import_module("triton.language")
except ImportError:
    triton, tl = _StandIn(), None
INSTALLED = tl is not None
