"""A tensor in float32 as 24 bits an element, of which 16 are its value in bfloat16, which is written in any case.

    bits(x) ≈ bits(high) + 256 · low,   high = x in bfloat16,  low a signed byte:   |error| ≤ 2⁻¹⁵ |x|, mostly 2⁻¹⁷

So does the residual stream go from one sub-block to the next, forward x = x̂ / rstd + mean with x̂ ≈ (high, low), where
high is the norm's output, and back its gradient, where high is the gradient of the branch that ends there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from aim_kernels.optional_triton import tl, triton


class Packed(Tensor):
    """In float32 for everybody: what knows the parts reads them, and any operator of torch the value, formed once.

    Args:
        shape: [.., D].
        high, low: [M, D] in bfloat16 and int8.
        mean, rstd: [M] in float32 of rows that are normalised, or neither.
    """

    parts: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    _value: Tensor | None

    @staticmethod
    def __new__(
        cls, shape: torch.Size, high: Tensor, low: Tensor, mean: Tensor | None = None, rstd: Tensor | None = None
    ) -> Packed:
        packed = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=place(high))
        packed.parts, packed._value = (high, low, mean, rstd), None
        return packed

    def __init__(self, *_: Any) -> None:
        super().__init__()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(Packed, cls._formed, (args, kwargs or {}))
        return func(*args, **kwargs)

    def data_ptr(self) -> int:
        """Of the value: a kernel that is launched on one, past torch's dispatcher, reads that."""
        with torch.no_grad():
            return self._formed().data_ptr()

    def _formed(self) -> Tensor:
        if self._value is None:  # what is written to it from then on is written there
            self._value = unpacked_reference(*self.parts).view(self.shape)
        return self._value


def place(x: Tensor) -> torch.device:
    """Where autograd is told that ``x`` is."""
    return x.device


def parts_of(x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """``x`` [.., D] as rows [M, D]: those of a :class:`Packed` one, or itself and nothing else."""
    if isinstance(x, Packed) and x._value is None:
        return x.parts
    return x.reshape(-1, x.shape[-1]), None, None, None


def packed_reference(x: Tensor, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """``high``, in ``dtype``, and ``low`` of ``x`` in float32, in plain torch; in its own dtype nothing is left."""
    high = x.to(dtype)
    if dtype == x.dtype:
        return high, torch.zeros_like(x, dtype=torch.int8)
    left = x.view(torch.int32) - high.float().view(torch.int32)
    return high, ((left + 128) >> 8).clamp_max(127).to(torch.int8)


def unpacked_reference(
    high: Tensor, low: Tensor | None = None, mean: Tensor | None = None, rstd: Tensor | None = None
) -> Tensor:
    """The value in plain torch: float32, or float64 as ``high``, and ``high`` itself without ``low``."""
    if low is None:
        return high
    x = (high.float().view(torch.int32) + low.int() * 256).view(torch.float32)
    x = x.to(torch.promote_types(high.dtype, torch.float32))
    return x if mean is None or rstd is None else x / rstd[:, None] + mean[:, None]


@triton.jit
def load_stream(
    high_ptr: tl.tensor, low_ptr: tl.tensor, o_tile: tl.tensor, m_tile: tl.tensor, PACKED: tl.constexpr
) -> tl.tensor:
    """A tile in float32, as it is or PACKED; masked elements are zero."""
    b_x = tl.load(high_ptr + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    if PACKED:
        b_low = tl.load(low_ptr + o_tile, mask=m_tile, other=0).to(tl.int32)
        b_x = (b_x.to(tl.int32, bitcast=True) + b_low * 256).to(tl.float32, bitcast=True)
    return b_x


@triton.jit
def store_low(b_x: tl.tensor, b_high: tl.tensor, low_ptr: tl.tensor, o_tile: tl.tensor, m_tile: tl.tensor) -> None:
    """Of a tile in float32 what ``b_high`` in bfloat16 lacks."""
    b_left = b_x.to(tl.int32, bitcast=True) - b_high.to(tl.float32).to(tl.int32, bitcast=True)
    b_low = tl.minimum((b_left + 128) >> 8, 127)
    tl.store(low_ptr + o_tile, b_low.to(tl.int8), mask=m_tile)
