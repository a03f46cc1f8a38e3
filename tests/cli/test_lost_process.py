"""`aim-fast compare --train` under torchrun where one of two processes fails alone, or dies."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.cli.processes import ENVIRONMENT, finish, signal_after, start, worker_of

pytestmark = pytest.mark.slow

# Read by every Python process that finds it: the second process fails in its second step with LoRA.
FAULT = """
import os
if os.environ.get("RANK") == "1":
    import aim_fast.training.optimization as optimization

    step = optimization.Optimization.step

    def failing(self, batches, number, *rest):
        if self.recipe.model.method == "lora" and number == 1:
            raise RuntimeError("the disk of this machine is gone")
        return step(self, batches, number, *rest)

    optimization.Optimization.step = failing
"""


@pytest.fixture
def command(motion_set, trunk):
    data = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, "--trunk", "vit_demo", "--frames", 4)
    sizes = ("--batch-size", 4, "--log-every", 1, "--checkpoint-every", 1, "--device", "cpu", "--workers", 1)
    return ("compare", "--train", "lora", "probe", *data, *sizes, "--budget", "epochs=1", "--quiet", "--output")


def rows_of(folder):
    return {row["title"]: row for row in json.loads((folder / "table.json").read_text())["rows"]}


def test_a_process_that_fails_alone_ends_its_row_with_its_own_reason_and_the_job_goes_on(
    command, tmp_path, monkeypatch
):
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(FAULT)
    path = os.pathsep.join([str(tmp_path / "fault"), ENVIRONMENT.get("PYTHONPATH", "")])
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", path)
    process = start(*command, tmp_path / "a", processes=2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    rows = rows_of(tmp_path / "a")
    assert rows["lora"]["failed"].startswith("process 1: RuntimeError: the disk of this machine is gone")
    assert "\n" not in rows["lora"]["failed"]
    assert rows["lora"]["failed"] in out
    assert rows["probe"]["top1"] is not None
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", ENVIRONMENT["PYTHONPATH"].partition(os.pathsep)[2])
    finish(start(*command, tmp_path / "a", processes=2))  # the row goes on where it stood
    assert rows_of(tmp_path / "a")["lora"]["failed"] is None


def test_a_process_that_dies_ends_the_job_and_the_same_command_goes_on_with_it(command, tmp_path):
    process = start(*command, tmp_path / "a", processes=2)
    second = None

    class Second:
        """The second process, found when the first has trained a step."""

        poll = staticmethod(process.poll)

        @staticmethod
        def send_signal(number):
            nonlocal second
            second = worker_of(process, 1)
            os.kill(second, number)

    signal_after(Second, tmp_path / "a" / "lora", "train", 2, signal.SIGKILL)
    process.communicate(timeout=120)
    assert second is not None
    assert process.returncode != 0
    assert not (tmp_path / "a" / "probe").exists()
    finish(start(*command, tmp_path / "a", processes=2))
    rows = rows_of(tmp_path / "a")
    assert [row["failed"] for row in rows.values()] == [None, None]
