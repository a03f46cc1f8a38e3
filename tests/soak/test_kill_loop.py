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
    context.set_forkserver_preload(
        ["aim_fast.training.loop", "aim_fast.data.pixels.dali_pipelines", "torch.utils.tensorboard"]
    )
    return context


def wait_for_checkpoints(run: Path, count: int, process: multiprocessing.Process) -> None:
    """Returns when a run has written so many checkpoints more, or has ended."""
    last, seen = run / "checkpoints" / "last", []
    while process.is_alive() and len(seen) <= count:
        target = os.readlink(last) if last.is_symlink() else None
        if target not in seen[-1:]:
            seen.append(target)
        process.join(0.005)


@pytest.mark.parametrize("kills", [pytest.param(4, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.soak)])
def test_a_run_killed_in_a_loop_ends_as_the_undisturbed_one(kills, motion_set, trunk, tmp_path):
    options = ["--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, "--model", "aim_vit_demo"]
    options += ["--frames", 4, "--batch-size", 8, "--checkpoint-every", 1, "--log-every", 1]
    options += ["--epochs", max(kills // 2, 6), "--ema", 0.9]  # five steps each, of which a life takes one or two
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
    wait_for_checkpoints(whole, 1, process)
    to_first_checkpoint = time.monotonic() - started
    process.join()
    assert process.exitcode == 0
    hit = 0
    for _ in range(kills):
        resume = ["--resume"] if (killed / "recipe.yaml").exists() else options
        process = start("--output", killed, *resume)
        # by what the run has done, not by the clock alone: a fast machine would end before it is killed often enough
        if checkpoints := draw.choice((0, 1, 1, 2)):
            wait_for_checkpoints(killed, checkpoints, process)
            process.join(draw.uniform(0, 0.05))
        else:
            process.join(draw.uniform(0, to_first_checkpoint))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            hit += 1
        process.join()
        if (killed / "checkpoints" / "last").exists():
            read_checkpoint(find_checkpoint(Path(killed), "last"), with_state=True)
    assert hit >= kills // 2
    process = start("--output", killed, "--resume")
    process.join()
    assert process.exitcode == 0
    ours, theirs = (load_file(folder / "checkpoints/last/adapters.safetensors") for folder in (killed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
