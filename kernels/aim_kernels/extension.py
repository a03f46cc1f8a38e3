"""The optional C++ part, aim_kernels._C: operators of namespace ``aim_cpu``, loaded here when it was built.

``available()`` says whether it is there; ``tier()`` which instruction set it chose on this processor ("amx",
"avx512_bf16", "avx512", "avx2" or "generic"). Where it is absent, every operator runs its plain-torch reference on CPU.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def _load() -> bool:
    for library in sorted(Path(__file__).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(library)
        except OSError:  # built against a torch that this one is not compatible with
            continue
        return True
    return False


_LOADED = _load()


def available() -> bool:
    """Whether the C++ operators are loaded."""
    return _LOADED


def tier() -> str:
    """The instruction-set tier in use, or "reference" without the C++ part."""
    return torch.ops.aim_cpu.tier() if _LOADED else "reference"


def has(operator: str) -> bool:
    """Whether ``aim_cpu`` has ``operator``: a C++ part that was built from older sources may lack it."""
    return _LOADED and hasattr(torch.ops.aim_cpu, operator)


def supports(*tensors: Tensor | None) -> bool:
    """Whether the C++ operators take these tensors: loaded, on CPU, and float32 or bfloat16."""
    return _LOADED and all(
        x is None or (x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)) for x in tensors
    )
