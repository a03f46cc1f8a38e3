"""The optional C++ part. aim_kernels._C: operators of namespace ``aim_cpu``, loaded here when it was built.

``available()`` says whether it is there; ``tier()`` which instruction set it chose on this processor ("amx",
"avx512_bf16", "avx512", "avx2" or "generic"). Where it is absent, every operator runs its plain-torch reference on CPU.
A build of other sources than those beside it, or one that this torch cannot load, is named in one line and not used.
aim_kernels._again, :func:`replays`, comes with it and launches on a GPU.
"""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from aim_kernels import sources

_BUILD = "build it again with pip install --no-build-isolation -e ."


def _load() -> str | None:
    """Loads the C++ part, or says why it is not used."""
    mark, fault = sources.mark(), None
    for library in sorted(Path(__file__).parent.glob("_C*.so")):
        if mark and mark not in library.read_bytes():
            fault = f"{library.name} was not built from the sources in {sources.FOLDER}: {_BUILD}"
            continue
        try:
            torch.ops.load_library(library)
        except OSError as error:
            reason = " ".join(str(error).split())[:160]
            fault = f"{library.name} does not load with torch {torch.__version__} ({reason}): {_BUILD}"
            continue
        return None
    if fault:
        logging.getLogger(__name__).warning("C++ operators left out: %s", fault)
    return fault or "the C++ part is not built: it needs a compiler and pip install --no-build-isolation"


_FAULT = _load()
_in_use = _FAULT is None


def fault() -> str | None:
    """Why the C++ operators are not loaded; None where they are."""
    return _FAULT


def available() -> bool:
    """Whether the C++ operators are loaded."""
    return _FAULT is None


def replays() -> ModuleType | None:
    """aim_kernels._again, of the same sources and for this Python and torch; None where it is not."""
    try:
        module = import_module("aim_kernels._again") if available() else None
    except ImportError:
        return None
    if module is None or torch.__version__.split("+")[0] != module.TORCH:  # whose structures it reads
        return None
    return module if sources.mark() in (None, module.SOURCES.encode()) else None


def tier() -> str:
    """The instruction-set tier in use, or "reference" without the C++ part."""
    return torch.ops.aim_cpu.tier() if _in_use else "reference"


def use(tier: str) -> None:
    """Runs the operators on another tier from here on, or with "reference" without the C++ part.

    Raises RuntimeError where this processor has not that tier, or the C++ part is not built.
    """
    global _in_use
    if tier != "reference":
        if _FAULT:
            raise RuntimeError(f"there is the tier reference alone: {_FAULT}")
        torch.ops.aim_cpu.set_tier(tier)
    _in_use = tier != "reference"


def supports(*operands: Tensor | torch.dtype) -> bool:
    """Whether the C++ operators take these: in use, float32 or bfloat16, tensors on a CPU."""
    return _in_use and all(
        x in _DTYPES if isinstance(x, torch.dtype) else x.device.type == "cpu" and x.dtype in _DTYPES for x in operands
    )


_DTYPES = (torch.float32, torch.bfloat16)
