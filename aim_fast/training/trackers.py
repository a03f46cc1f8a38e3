"""Trackers of runs: what a run measures, shown beside other runs, in Weights & Biases, MLflow or Trackio.

Each is its library, brought by the extra of its name, and set up as that is: by its login, its offline mode, its
``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, ``TRACKIO_DIR``. A thread serves each, so that
training never waits for a network; what fails is said once, and the tracker left. ``RUN/trackers.json`` keeps
what each calls the run, so that a resumed run goes on in the same one. TensorBoard is one of them, without a thread: it
writes into the run's folder, where a disk that is full is said as for every file of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import netrc
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from aim_fast.errors import UsageError
from aim_fast.files import write_whole
from aim_fast.plain_path import plain_path

__all__ = ["Tracker", "check_trackers", "open_trackers"]

TRACKERS = "trackers.json"
PROJECT = "aim-fast"
_LAST_SECONDS = 30.0  # for what is still to be sent when a run ends
_HELD = 100_000  # lines that a tracker may be behind


class Tracker(Protocol):
    """Where the lines of a run go beside its own files."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(f"{plain_path(folder)}/tensorboard", purge_step=purge_step)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._events.close()


class _Wandb:
    def __init__(self, folder: Path, name: str, config: dict[str, Any]) -> None:
        import wandb

        offline = "WANDB_MODE" not in os.environ and not _wandb_login()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.absolute().name,
            dir=str(folder),
            id=name,
            resume="allow",
            config=config,
            mode="offline" if offline else None,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, folder: Path, name: str, config: dict[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        if not os.environ.get("MLFLOW_TRACKING_URI") and importlib.util.find_spec("sqlalchemy") is None:
            # the default is a database, which mlflow-skinny lacks: the files that were the default before
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            os.environ["MLFLOW_TRACKING_URI"] = Path("mlruns").absolute().as_uri()
        self._metric, self._client = Metric, MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self._client.create_experiment(experiment)
        runs = self._client.search_runs([number], f"tags.aim_fast = '{name}'")
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        run = self._client.create_run(number, run_name=folder.absolute().name, tags={"aim_fast": name})
        self._run = run.info.run_id
        self._client.log_batch(self._run, params=[Param(key, str(value)[:500]) for key, value in config.items()][:100])

    def log(self, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._run, [self._metric(key, value, now, step) for key, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _Trackio:
    def __init__(self, folder: Path, name: str, config: dict[str, Any]) -> None:
        import trackio

        plain = {key: value if isinstance(value, (int, float, bool)) else str(value) for key, value in config.items()}
        with contextlib.redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=PROJECT,
                name=f"{folder.absolute().name}-{name}",
                config=plain,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


_SERVICES: dict[str, tuple[str, Callable[[Path, str, dict[str, Any]], Tracker]]] = {
    "wandb": ("wandb", _Wandb),
    "mlflow": ("mlflow", _Mlflow),
    "trackio": ("trackio", _Trackio),
}


class _Served:
    """A tracker that a thread opens and writes to. What fails there, or is too slow at the end, is said once."""

    def __init__(self, name: str, open_it: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        self._name, self._open, self._say = name, open_it, say
        self._lines: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_HELD)
        self._left = False
        self._thread = threading.Thread(target=self._serve, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        if not self._left:
            try:
                self._lines.put_nowait((step, values))
            except queue.Full:
                self._leave(f"is {_HELD} lines behind")

    def close(self) -> None:
        if not self._left:
            with contextlib.suppress(queue.Full):
                self._lines.put_nowait(None)
            self._thread.join(_LAST_SECONDS)
            if self._thread.is_alive():
                self._leave(f"did not take the last lines in {_LAST_SECONDS:.0f} s")

    def _serve(self) -> None:
        try:
            tracker = self._open()
            while (line := self._lines.get()) is not None and not self._left:
                tracker.log(*line)
            tracker.close()
        except Exception as error:  # of any kind: of its network, its login, its disk
            said = " ".join(str(error).split())[:200]
            self._leave(f"failed ({type(error).__name__}{': ' + said if said else ''})")

    def _leave(self, why: str) -> None:
        if not self._left:
            self._left = True
            self._say(f"tracker {self._name} {why}: the run goes on without it; its own files have every line")


def check_trackers(names: Sequence[str]) -> None:
    """Raises UsageError for a tracker whose library is not installed."""
    for name in names:
        if name in _SERVICES and importlib.util.find_spec(_SERVICES[name][0]) is None:
            raise UsageError(f'--tracker {name}: needs {name}: pip install "aim-fast[{name}]"')


def open_trackers(
    names: Sequence[str], folder: Path, resume_step: int | None, config: dict[str, Any], say: Callable[[str], None]
) -> list[Tracker]:
    """The trackers of a run; those that were opened for it before, where ``resume_step`` is given.

    ``config``: what they show beside the run; ``say`` is called, from any thread, with what fails. Raises OSError where
    the run's folder cannot be written.
    """
    known = _known(folder) if resume_step is not None else {}
    services = [name for name in names if name in _SERVICES]
    ours = known | {name: secrets.token_hex(4) for name in services if name not in known}
    if ours != known:
        write_whole(folder / TRACKERS, json.dumps(ours, indent=2) + "\n")

    def served(name: str) -> Tracker:
        return _Served(name, lambda: _SERVICES[name][1](folder, ours[name], config), say)

    return [_TensorBoard(folder, resume_step) if name == "tensorboard" else served(name) for name in names]


def _known(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / TRACKERS).read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): value for key, value in found.items() if isinstance(value, str) and value.isalnum()}


def _wandb_login() -> bool:
    """Whether wandb would find a key without asking; without one a run is kept offline, for ``wandb sync``."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
