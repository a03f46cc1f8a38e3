"""Training in processes of their own, to be stopped, killed and resumed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from aim_fast.training.metrics import read_metrics

# one thread each: sums in one order, so that equal runs are equal to the bit
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*arguments: object, processes: int = 0, restarts: int = 0, meeting: str = "") -> subprocess.Popen:
    """A command, or so many ``processes`` of it by torchrun, on one of two machines that meet at a ``host:port``."""
    launcher = [sys.executable, "-m"]
    if processes:
        nodes = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting] if meeting else ["--standalone"]
        launcher += ["torch.distributed.run", *nodes, "--nproc-per-node", str(processes)]
        launcher += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", "-m"]
    command = [*launcher, "aim_fast", *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def finish(process: subprocess.Popen) -> str:
    """What the command printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def adapters(folder):
    return load_file(folder / "checkpoints" / "last" / "adapters.safetensors")


def losses(folder):
    return [(row["kind"], row["step"], row["loss"]) for row in read_metrics(folder) if row["kind"] != "data"]


def signal_after(process: subprocess.Popen, folder, kind: str, count: int, number: int) -> None:
    """Sends a signal when the run has written `count` lines of a kind, or returns when the run has ended."""
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if len([row for row in read_metrics(folder) if row["kind"] == kind]) >= count:
            process.send_signal(number)
            return
        time.sleep(0.005)


def worker_of(launcher: subprocess.Popen, rank: int) -> int:
    """The process id of a rank under torchrun."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no process of rank {rank} among {children}")
