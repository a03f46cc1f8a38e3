"""A run that is killed again and again goes on each time, and ends as one that never was."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aim_fast.training.checkpoint import find_checkpoint, read_checkpoint


def train(arguments: list[str]) -> None:
    from aim_fast.cli import main

    main(["train", *arguments, "--quiet"])


def server() -> multiprocessing.context.ForkServerContext:
    """Processes that start with everything imported, so that most of their short lives is training."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aim_fast.training.loop", "aim_fast.data.pipelines", "torch.utils.tensorboard"])
    return context


@pytest.mark.parametrize("kills", [pytest.param(4, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.soak)])
def test_a_run_killed_in_a_loop_ends_as_the_undisturbed_one(kills, motion_set, trunk, tmp_path):
    options = ["--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, "--model", "aim_vit_demo"]
    options += ["--frames", 4, "--batch-size", 8, "--checkpoint-every", 1, "--log-every", 1]
    options += ["--epochs", max(kills // 4, 6), "--ema", 0.9]
    context, draw = server(), random.Random(kills)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(*arguments: object) -> multiprocessing.Process:
        process = context.Process(target=train, args=([str(argument) for argument in arguments],))
        process.start()
        return process

    warm = context.Process(target=int)  # the imports are not the run's
    warm.start()
    warm.join()
    started = time.monotonic()
    process = start(*options, "--output", whole)
    process.join()
    lifetime = time.monotonic() - started
    assert process.exitcode == 0
    hit = 0
    for _ in range(kills):
        resume = ["--resume"] if (killed / "recipe.yaml").exists() else options
        process = start("--output", killed, *resume)
        # most kills fall into the time in which a resumed run has begun to train, some before and after
        process.join(draw.uniform(0.1, 0.9) * min(lifetime, 4))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            hit += 1
        process.join()
        if (killed / "checkpoints" / "last").exists():
            read_checkpoint(find_checkpoint(Path(killed), "last"), with_state=True)
    assert hit >= kills // 4
    process = start("--output", killed, "--resume")
    process.join()
    assert process.exitcode == 0
    ours, theirs = (load_file(folder / "checkpoints/last/adapters.safetensors") for folder in (killed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
