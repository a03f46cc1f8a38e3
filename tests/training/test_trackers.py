"""Lines of a run in each tracker, offline, read back by its own library; a tracker that fails stops nothing."""

import importlib.util
import json
import sqlite3
import time
from pathlib import Path

import pytest

from aim_fast.errors import UsageError
from aim_fast.training import trackers
from aim_fast.training.metrics import MetricsLog, read_metrics
from aim_fast.training.trackers import check_trackers, open_trackers


def needs(name: str):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def train(folder: Path, name: str, steps: range, resume_step: int | None = None) -> list[str]:
    """Lines of some steps as training writes them; returns what was said."""
    folder.mkdir(exist_ok=True)
    said: list[str] = []
    opened = lambda: open_trackers((name,), folder, resume_step, {"lr": 1e-3, "betas": (0.9, 0.999)}, said.append)  # noqa: E731
    log = MetricsLog(folder, resume_step, True, opened)
    for step in steps:
        log.write("train", step, epoch=1, loss=1 / step, lr=1e-3)
    log.close()
    return said


@needs("mlflow")
def test_a_resumed_run_goes_on_in_the_same_run_of_mlflow(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert train(tmp_path / "run", "mlflow", range(1, 4)) == []
    assert train(tmp_path / "run", "mlflow", range(4, 6), resume_step=3) == []
    client = MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("aim-fast").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["lr"] == "0.001"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(step, 1 / step) for step in range(1, 6)]


@pytest.mark.slow
@needs("wandb")
def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))  # without a login it stays offline, and asks nothing
    assert train(tmp_path / "run", "wandb", range(1, 3)) == []
    assert train(tmp_path / "run", "wandb", range(3, 4), resume_step=2) == []
    name = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{name}*/run-{name}.wandb"))
    assert len(files) >= 1
    assert b"train/loss" in b"".join(file.read_bytes() for file in files)


@needs("trackio")
def test_a_resumed_run_goes_on_in_the_same_run_of_trackio(tmp_path, monkeypatch):
    import trackio.sqlite_storage
    import trackio.utils

    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "store")
    assert train(tmp_path / "run", "trackio", range(1, 3)) == []
    assert train(tmp_path / "run", "trackio", range(3, 5), resume_step=2) == []
    (database,) = (tmp_path / "store").rglob("aim-fast*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    assert [(step, json.loads(metrics)["train/loss"]) for _, step, metrics in rows] == [
        (step, 1 / step) for step in range(1, 5)
    ]


class Failing:
    """A service that goes away at the second line, or never answers."""

    hangs = False

    def __init__(self, folder: Path, name: str, config: dict) -> None:
        self.lines = 0

    def log(self, step, values):
        self.lines += 1
        if self.lines > 1 and self.hangs:
            time.sleep(60)
        elif self.lines > 1:
            raise ConnectionError("no route\nto host")

    def close(self):
        pass


@pytest.mark.parametrize("hangs", [False, True])
def test_a_tracker_that_fails_is_said_once_and_stops_nothing(tmp_path, monkeypatch, hangs):
    monkeypatch.setattr(Failing, "hangs", hangs)
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 0.3)
    monkeypatch.setitem(trackers._SERVICES, "mlflow", ("json", Failing))
    start = time.monotonic()
    said = train(tmp_path, "mlflow", range(1, 200))
    assert time.monotonic() - start < 5
    assert len(said) == 1
    assert ("did not take the last lines" if hangs else "failed (ConnectionError: no route to host)") in said[0]
    assert len(read_metrics(tmp_path)) == 199


def test_a_tracker_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(trackers._SERVICES, "wandb", ("no_such_library", Failing))
    with pytest.raises(UsageError, match=r'needs wandb: pip install "aim-fast\[wandb\]"'):
        check_trackers(("tensorboard", "wandb"))
    check_trackers(("tensorboard",))


def test_none_leaves_tensorboard_out(tmp_path):
    assert open_trackers((), tmp_path, None, {}, print) == []
    assert list(tmp_path.iterdir()) == []
