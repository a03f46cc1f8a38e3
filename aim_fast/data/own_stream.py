"""Batches that are made on a GPU beside the work of their consumer."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import fields

import torch

from aim_fast.data.batch import Batch

__all__ = ["on_stream", "own_stream", "used_here"]


def own_stream(device: torch.device) -> torch.cuda.Stream | None:
    """One for a loader, whose memory its next batches take again; None on a CPU."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def on_stream(batches: Generator[Batch, None, None], stream: torch.cuda.Stream | None) -> Generator[Batch, None, None]:
    """Draws ``batches`` on a stream: on the consumer's a copy to the device waits for every step launched before it."""
    with torch.cuda.stream(stream):
        yield from batches


def used_here(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Tells the allocator that batches made on a stream of their own are used on the consumer's."""
    for batch in batches:
        for tensor in (getattr(batch, field.name) for field in fields(batch)):
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        yield batch
