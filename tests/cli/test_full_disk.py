"""A disk that fills up costs one line: what was there stays whole, and the run goes on when there is room again.

A limit on the size of files makes real writes fail half-way, as a full disk does.
"""

import resource

import pytest
import torch

from aim_fast.training.checkpoint import find_checkpoint, read_checkpoint
from tests.cli.processes import adapters, finish, losses, signal_after, start

pytestmark = pytest.mark.stack


def limit_files(process, size: int) -> None:
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
@pytest.mark.parametrize("size", [300, 400_000], ids=["metrics", "checkpoint"])
def test_what_does_not_fit_any_more_leaves_the_checkpoint_before_whole(tiny, tmp_path, undisturbed, size):
    run = tmp_path / "run"
    process = start("train", *tiny, "--epochs", 2, "--checkpoint-every", 1, "--output", run, "--quiet")
    signal_after(process, run, "train", 2, 0)
    limit_files(process, size)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    said = err.splitlines()[-1]  # TensorBoard's own thread may complain before it
    assert said.startswith("aim-fast: error: ")
    assert "not written" in said
    assert "--resume" in said
    read_checkpoint(find_checkpoint(run, "last"), with_state=True)
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
    finish(start("train", "--output", run, "--resume", "--quiet"))
    ours, theirs = adapters(run), adapters(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(run) == losses(undisturbed)
