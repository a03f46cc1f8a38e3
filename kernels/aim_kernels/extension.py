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
_in_use = _LOADED


def available() -> bool:
    """Whether the C++ operators are loaded."""
    return _LOADED


def tier() -> str:
    """The instruction-set tier in use, or "reference" without the C++ part."""
    return torch.ops.aim_cpu.tier() if _in_use else "reference"


def use(tier: str) -> None:
    """Runs the operators on another tier from here on, or with "reference" without the C++ part.

    Raises RuntimeError where this processor has not that tier, or the C++ part is not built.
    """
    global _in_use
    if tier != "reference":
        if not _LOADED:
            raise RuntimeError("aim_kernels._C is not built: there is the tier reference alone")
        torch.ops.aim_cpu.set_tier(tier)
    _in_use = tier != "reference"


def has(operator: str) -> bool:
    """Whether ``aim_cpu`` has ``operator``: a C++ part that was built from older sources may lack it."""
    return _LOADED and hasattr(torch.ops.aim_cpu, operator)


def supports(*operands: Tensor | torch.dtype) -> bool:
    """Whether the C++ operators take these: in use, float32 or bfloat16, tensors on a CPU."""
    return _in_use and all(
        x in _DTYPES if isinstance(x, torch.dtype) else x.device.type == "cpu" and x.dtype in _DTYPES for x in operands
    )


_DTYPES = (torch.float32, torch.bfloat16)
