"""Processes that work on foreign bytes, a JSON line in and a JSON line out, so that a crash takes only them.

Workers are plain ``python -c`` processes that import what their program needs and nothing heavier: no fork of a
threaded parent, no second run of the caller's script. One that hangs is killed at its deadline, one that was lost is
started anew.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

__all__ = ["Worker", "WorkerLost", "spread"]

Result = TypeVar("Result")


class WorkerLost(Exception):
    """A worker ended without an answer; its exit status is ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


class Stoppable(Protocol):
    """What holds a process."""

    def stop(self) -> None: ...


StoppableT = TypeVar("StoppableT", bound=Stoppable)


class Worker:
    """One process that runs ``program``, started when first asked and started again after it was lost."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, message: Any, seconds: float) -> Any:
        """The answer to one message.

        Raises:
            TimeoutError: none within this time; the process is killed. WorkerLost: the process ended.
        """
        deadline = time.monotonic() + seconds
        if self.process is None:
            self.process = _start(self.program)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
            line = _line(self.process, deadline)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self.stop()
            raise
        if not line:
            status = self.process.wait()
            self.stop()
            raise WorkerLost(status)
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None


def spread(
    total: int,
    workers: int,
    start: Callable[[], StoppableT],
    work: Callable[[StoppableT, int], Result],
    done: Callable[[int, Result], None],
) -> None:
    """Do ``work(worker, position)`` for positions 0 to ``total`` - 1, each of ``workers`` on one at a time.

    ``done(position, result)`` is called as each is ready, from one thread at a time. The first exception, of either or
    an interruption, stops all workers and is raised.
    """
    positions = iter(range(total))
    lock = threading.Lock()
    failures: list[BaseException] = []

    def run() -> None:
        worker = start()
        try:
            while not failures:
                with lock:
                    position = next(positions, None)
                if position is None:
                    return
                result = work(worker, position)
                with lock:
                    if not failures:
                        done(position, result)
        except BaseException as error:
            failures.append(error)
        finally:
            worker.stop()

    threads = [
        threading.Thread(target=run, name=f"worker-{i}", daemon=True) for i in range(max(1, min(workers, total)))
    ]
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


def _start(program: str) -> subprocess.Popen[bytes]:
    source = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,  # Ctrl-C reaches the parent alone, which then stops its workers
    )


def _line(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """One line of the worker's output, empty when it is gone; TimeoutError at the deadline."""
    assert process.stdout is not None
    poll = select.poll()  # select() itself takes no file descriptor above 1023
    poll.register(process.stdout, select.POLLIN)
    held = b""
    while b"\n" not in held:
        if not poll.poll(1000 * max(deadline - time.monotonic(), 0)):
            raise TimeoutError
        part = os.read(process.stdout.fileno(), 65536)
        if not part:
            return b""
        held += part
    return held
