"""Batches that are made on a GPU beside the work of their consumer."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import fields

import torch

from aim_fast.data.batch import Batch

__all__ = ["on_own_stream", "used_here"]


def on_own_stream(batches: Generator[Batch, None, None], device: torch.device) -> Generator[Batch, None, None]:
    """Draws ``batches`` on a stream of their own: a copy to the device would otherwise wait for every step that was
    launched before it. On a CPU they are drawn as they are."""
    if device.type != "cuda":
        yield from batches
        return
    with torch.cuda.stream(torch.cuda.Stream(device)):
        yield from batches


def used_here(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Tells the allocator that batches made on a stream of their own are used on the consumer's."""
    for batch in batches:
        for tensor in (getattr(batch, field.name) for field in fields(batch)):
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        yield batch
