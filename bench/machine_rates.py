"""What the machine can do at most: the rates that measured ones are held against."""

from __future__ import annotations

import torch

from aim_fast.timing import take_turns


def copy_bandwidth(device: str) -> float:
    """Bytes a second of a large copy, read and written both counted: what memory-bound kernels are held against."""
    source = torch.empty((64 if device == "cpu" else 512) * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = take_turns({"copy": lambda: target.copy_(source)}, 10, device, ahead=True)["copy"]
    return 2 * source.numel() / timing.median


def matrix_rate(device: str, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP a second (two a multiply-add) of one large product: the rate that model FLOPs are held against."""
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    timing = take_turns({"product": lambda: a @ b}, 10, device, ahead=True)["product"]
    return 2 * size**3 / timing.median
