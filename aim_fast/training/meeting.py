"""How the processes of one start find each other in a store that an earlier start of theirs has used.

torchrun keeps its store when it restarts the processes after one was lost. The process group's keys are the same each
time, so a process may read the address that a dead one left there, and the restart fails by chance (PyTorch's issue
135712). Here the processes agree on a name that only this start has, and put it before all their keys: the first one
makes it up, each other answers under it with a name of its own, and goes on when the first one's list has that name.
What an earlier start left can be answered, but never lists this one's process.

In the same store the first process that fails says why.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from aim_fast.errors import AimFastError

_FIRST = "aim_fast/first"
_FAILED = "failed"


def meet(store: dist.Store, rank: int, world: int, timeout: timedelta) -> dist.Store:
    """``store`` under a name that all ``world`` processes of this start have in common, and no others.

    Raises torch.distributed.DistStoreError or TimeoutError where the others do not come within ``timeout``.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set(_FIRST, own)
        answers = [f"{own}/{other}" for other in range(1, world)]
        store.wait(answers, timeout)
        store.set(f"{own}/members", " ".join(store.get(answer).decode() for answer in answers))
        return dist.PrefixStore(own, store)
    end = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < end:
        store.wait([_FIRST], timeout)
        first = store.get(_FIRST).decode()
        store.set(f"{first}/{rank}", own)
        members = f"{first}/members"
        if store.check([members]) and own in store.get(members).decode().split():
            return dist.PrefixStore(first, store)
        time.sleep(0.02)
    raise TimeoutError(f"process {rank} of {world} found no first process within {timeout}")


def first_failure(store: dist.Store, rank: int, error: Exception) -> str | None:
    """What went wrong first in another process that met in ``store``; None where ``error``, of this one, came first."""
    kind = "" if isinstance(error, AimFastError) else f"{type(error).__name__}: "
    own = f"process {rank}: {kind}{' '.join(str(error).split())}"
    try:
        first = store.compare_set(_FAILED, "", own).decode()
    except (dist.DistError, RuntimeError):  # the process that held the store is gone
        return None
    return None if first == own else first
