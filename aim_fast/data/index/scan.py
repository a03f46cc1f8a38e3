"""Probing many files at once, each worker a process of its own with a time limit per file.

Decoding runs foreign code on foreign bytes. A file that hangs its decoder is given up after its time, one that crashes
it is named, and the worker is started anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aim_fast.cores import default_workers
from aim_fast.data.index.worker import Worker, WorkerLost, spread
from aim_fast.data.video.probe import Probe, file_state

__all__ = ["Prober", "scan"]

_SERVE = "from aim_fast.data.video.probe import serve; serve()"
_SECONDS_A_FILE = 60.0
_SECONDS_A_MEGABYTE = 10.0  # a core decodes a megabyte of dense VP9 in about a second


def scan(
    paths: Sequence[str],
    *,
    workers: int | None = None,
    done: Callable[[int, Probe], None] | None = None,
    seconds_a_file: float = _SECONDS_A_FILE,
) -> list[Probe]:
    """Probe every path, in parallel; results in the order of ``paths``.

    Args:
        workers: processes; None for one a core.
        done: called with (position, probe) as each is ready, from one thread at a time.
        seconds_a_file: time limit of a small file; larger ones get ten seconds more a megabyte.
    """
    results: list[Probe | None] = [None] * len(paths)

    def ready(position: int, found: Probe) -> None:
        results[position] = found
        if done is not None:
            done(position, found)

    spread(
        len(paths),
        workers or default_workers(),
        Prober,
        lambda prober, position: prober.probe(paths[position], seconds_a_file),
        ready,
    )
    return [found for found in results if found is not None]


class Prober:
    """One probing process, started when first needed and started again after it was lost."""

    def __init__(self) -> None:
        self.worker = Worker(_SERVE)

    def probe(self, path: str, seconds: float = _SECONDS_A_FILE) -> Probe:
        size, mtime_ns = file_state(path)
        try:
            return Probe(**self.worker.ask(path, seconds + _SECONDS_A_MEGABYTE * max(size, 0) / 2**20))
        except TimeoutError:
            error = f"hangs the decoder (given up after {seconds:.0f} s)"
        except WorkerLost as lost:
            error = f"crashes the decoder (exit status {lost.status})"
        return Probe(size=size, mtime_ns=mtime_ns, error=error)

    def stop(self) -> None:
        self.worker.stop()
