"""How many cores this process may use: what workers and decoding threads are counted by."""

from __future__ import annotations

import os

__all__ = ["default_workers"]


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
