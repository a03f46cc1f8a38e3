"""A run beside one that is told to stop in its second batch and resumed."""

import os
import signal

import torch
from safetensors.torch import load_file

from aim_fast.training.metrics import read_metrics


def train_and_resume(aim_fast, monkeypatch, kind, options, folder):
    """The folder of a run of ``options`` that one which was stopped and resumed equals to the last bit.

    ``kind``: the class of its model.
    """
    whole, stopped = folder / "whole", folder / "stopped"
    status, _, err = aim_fast("train", *options, "--output", whole, "--quiet")
    assert status == 0, err
    calls, forward = [], kind.forward

    def forward_until_told_to_stop(self, x, *classes):
        calls.append(len(x))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, x, *classes)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", forward_until_told_to_stop)
        status, _, err = aim_fast("train", *options, "--output", stopped, "--quiet")
    assert status == 0, err
    assert len(losses(stopped)) < len(losses(whole))
    assert aim_fast("train", "--output", stopped, "--resume", "--quiet")[0] == 0
    assert losses(stopped) == losses(whole)
    ours, theirs = adapters(stopped), adapters(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return whole


def adapters(run):
    """What a run's last checkpoint holds of what trained, averaged where the run averages."""
    return load_file(run / "checkpoints" / "last" / "adapters.safetensors")


def losses(run):
    """Kind, step and loss of every line of a run's metrics."""
    return [(row["kind"], row["step"], row["loss"]) for row in read_metrics(run) if row["kind"] != "data"]
