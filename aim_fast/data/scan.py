"""Probing many files at once, each worker a process of its own with a time limit per file.

Decoding runs foreign code on foreign bytes. A file that hangs its decoder is given up after its time, one that crashes
it is named, and the worker is started anew. Workers are plain ``python -c`` processes that import PyAV and nothing
heavier: no fork of a threaded parent, no second run of the caller's script.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aim_fast.data.probe import Probe, file_state

__all__ = ["Prober", "default_workers", "scan"]

_SERVE = "from aim_fast.data.probe import serve; serve()"
_SECONDS_A_FILE = 60.0
_SECONDS_A_MEGABYTE = 10.0  # a core decodes a megabyte of dense VP9 in about a second


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    positions = iter(range(len(paths)))
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        worker = Prober()
        try:
            while not failures:
                with lock:
                    position = next(positions, None)
                if position is None:
                    return
                found = worker.probe(paths[position], seconds_a_file)
                with lock:
                    results[position] = found
                    if done is not None and not failures:
                        done(position, found)
        except BaseException as error:
            failures.append(error)
        finally:
            worker.stop()

    count = max(1, min(workers or default_workers(), len(paths)))
    threads = [threading.Thread(target=work, name=f"scan-{i}", daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as interruption:  # Ctrl-C: let every worker end before the caller goes on
        failures.append(interruption)
        for thread in threads:
            thread.join()
        raise
    if failures:
        raise failures[0]
    return [found for found in results if found is not None]


class Prober:
    """One probing process, started when first needed and started again after it was lost."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def probe(self, path: str, seconds: float = _SECONDS_A_FILE) -> Probe:
        size, mtime_ns = file_state(path)
        deadline = time.monotonic() + seconds + _SECONDS_A_MEGABYTE * max(size, 0) / 2**20
        if self.process is None:
            self.process = _start()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(path).encode() + b"\n")
            self.process.stdin.flush()
            line = next(_lines(self.process, deadline), b"")
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self.stop()
            return Probe(size=size, mtime_ns=mtime_ns, error=f"hangs the decoder (given up after {seconds:.0f} s)")
        if not line:
            status = self.process.wait()
            self.process = None
            return Probe(size=size, mtime_ns=mtime_ns, error=f"crashes the decoder (exit status {status})")
        return Probe(**json.loads(line))

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None


def _start() -> subprocess.Popen[bytes]:
    source = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,  # Ctrl-C reaches the parent alone, which then stops its workers
    )


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """Lines of the worker's output; TimeoutError at the deadline, the end of iteration when it is gone."""
    assert process.stdout is not None
    held = b""
    while True:
        ready, _, _ = select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            raise TimeoutError
        part = os.read(process.stdout.fileno(), 65536)
        if not part:
            return
        held += part
        while b"\n" in held:
            line, _, held = held.partition(b"\n")
            yield line
