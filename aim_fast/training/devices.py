"""Where a run computes: the process group, the device of this process, and the precision of its products."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import get_args

import torch
import torch.distributed as dist

from aim_fast.cores import default_workers
from aim_fast.errors import AimFastError, TrainingError, UsageError
from aim_fast.training.meeting import first_failure, meet
from aim_fast.training.recipe_groups import DEVICES, Precision
from aim_kernels.scaled_product import scaled_products_missing
from aim_kernels.scaled_rows import EIGHT_BITS


@dataclass(frozen=True)
class Place:
    """One process of a run: its rank among ``world``, its device, and the data type of its products."""

    rank: int
    world: int
    device: torch.device
    dtype: torch.dtype  # of autocast: bfloat16, float16, or float32 for none
    trunk: torch.dtype | None = None  # what the frozen trunk is held in, where that is another: float8_e4m3fn

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def precision(self) -> str:
        """For a reader."""
        return f"{self.dtype}".removeprefix("torch.") + ("" if self.trunk is None else ", frozen products in fp8")

    @property
    def autocast(self) -> Callable[[], torch.autocast]:
        enabled = self.dtype is not torch.float32
        return lambda: torch.autocast(self.device.type, self.dtype if enabled else None, enabled=enabled)

    def decoding_threads(self, asked: int) -> int:
        """Threads that decode in this process: ``asked``, or its share of this machine's cores where that is 0."""
        return asked or max(1, default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))

    def peak_memory(self) -> int:
        """Bytes at the highest point so far: of the allocator on a GPU, of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def choose_device(name: str) -> torch.device:
    """The device that a word stands for in this process. Raises UsageError if it is not there."""
    if not DEVICES.fullmatch(name):
        raise UsageError(f"device {name!r} must be auto, cpu, cuda or cuda:N")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The autocast type for a precision word; ``auto`` is bf16 where the device has it fast, else fp16 or fp32."""
    if precision not in get_args(Precision):
        raise UsageError(f"precision {precision!r} must be one of {', '.join(get_args(Precision))}")
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16 trains on a GPU only: use --precision bf16 or fp32 on the CPU")
    if precision == "fp8" and (missing := scaled_products_missing(device)):
        raise UsageError(f"precision fp8 does not run on {device}: {missing}; use --precision bf16")
    return {"fp16": torch.float16, "fp32": torch.float32}.get(precision, torch.bfloat16)


def single_place(device: str, precision: str) -> Place:
    """The place of a process that works alone."""
    return _place(0, 1, device, precision)


def _place(rank: int, world: int, device: str, precision: str) -> Place:
    chosen = choose_device(device)
    return Place(rank, world, chosen, choose_dtype(precision, chosen), EIGHT_BITS if precision == "fp8" else None)


@contextlib.contextmanager
def join_processes(device: str, precision: str) -> Iterator[Place]:
    """The place of this process, in the process group that torchrun describes, if it does: gloo on CPU, nccl on GPU.

    An error of one process ends the block in all of them: leaving the group, it breaks what the others wait for, and
    they raise TrainingError with its reason in place of what broke there, or what they find wrong themselves.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = _place(rank, world, device, precision)
    chosen = place.device
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.cuda.reset_peak_memory_stats(chosen)
    else:
        with contextlib.suppress(OSError):  # on Linux the highest point is then this run's, not that of one before
            Path("/proc/self/clear_refs").write_text("5")
    # scanning a large data set for the first time is the longest that the other processes wait for the first one
    if world == 1 or dist.is_initialized():
        yield place
        return
    timeout = timedelta(hours=3)
    store = meet(next(dist.rendezvous("env://", timeout=timeout))[0], rank, world, timeout)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    try:
        yield place
    except Exception as error:
        reason = first_failure(store, rank, error)
        if reason is not None and not isinstance(error, AimFastError):
            raise TrainingError(reason) from error
        raise
    finally:
        dist.destroy_process_group()


def first_process_first(place: Place) -> contextlib.AbstractContextManager[None]:
    """A block that rank 0 runs while the others wait; they run it when rank 0 is through."""

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        if not place.first:
            dist.barrier()
        yield
        if place.first and place.world > 1:
            dist.barrier()

    return turn()
