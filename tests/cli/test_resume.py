"""A run that is killed goes on as one that never was; several processes do the work of one."""

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
import yaml

from aim_fast.training.checkpoint import find_checkpoint
from aim_fast.training.metrics import read_metrics
from tests.cli.processes import adapters, finish, free_port, losses, signal_after, start, worker_of


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_adapters_bit_for_bit(tiny, tmp_path):
    options = ("train", *tiny, "--epochs", 4, "--checkpoint-every", 2, "--drop-path", 0.2, "--head-dropout", 0.5)
    options += ("--randaugment", "2,7", "--ema", 0.9, "--quiet")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(*options, "--output", whole)
    victim = start(*options, "--output", killed)
    generator = random.Random(time.time_ns())
    after = generator.randrange(3, 15)  # steps
    deadline = time.monotonic() + 240
    while victim.poll() is None and time.monotonic() < deadline:
        if len([row for row in read_metrics(killed) if row["kind"] == "train"]) >= after:
            time.sleep(generator.uniform(0, 0.2))
            victim.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    victim.communicate(timeout=60)
    finish(start("train", "--output", killed, "--resume", "--quiet"))
    finish(undisturbed)
    ours, theirs = adapters(killed), adapters(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), f"killed after {after} steps"
    assert losses(killed) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("train", 2), ("data", 1)], ids=["in a step", "in a validation"])
def test_sigterm_ends_a_run_with_status_0_and_resume_goes_on_exactly(tiny, tmp_path, undisturbed, kind, count):
    stopped = tmp_path / "stopped"
    process = start("train", *tiny, "--epochs", 2, "--output", stopped)
    signal_after(process, stopped, kind, count, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopped by SIGTERM after step" in out
    assert len(losses(stopped)) < len(losses(undisturbed))
    finish(start("train", "--output", stopped, "--resume", "--quiet"))
    ours, theirs = adapters(stopped), adapters(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(stopped) == losses(undisturbed)


@pytest.mark.slow
def test_a_lost_worker_is_restarted_and_the_run_goes_on_by_itself_from_its_last_checkpoint(tiny, tmp_path):
    """torchrun ends the other worker and starts both again; what comes out is the run that was never disturbed."""
    options = [*tiny, "--epochs", 2, "--checkpoint-every", 1, "--quiet", "--resume", "auto"]
    options[options.index("--batch-size") + 1] = 4
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    launcher = start("train", *options, "--output", disturbed, processes=2, restarts=1)
    deadline = time.monotonic() + 120
    while len(read_metrics(disturbed)) < 3 and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(worker_of(launcher, 1), signal.SIGKILL)
    _, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, err
    assert "SIGKILL" in err.upper() or "exitcode: -9" in err.lower()
    finish(start("train", *options, "--output", whole, processes=2))
    assert losses(disturbed) == losses(whole)
    ours, theirs = adapters(disturbed), adapters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_more_processes_and_machines_do_what_one_does(tiny, tmp_path):
    """Same clips in each step, so the same loss up to the order of sums; 42 clips leave a last step of two, of which
    two of four processes get none. The four are two machines of two, each with a launcher of its own."""
    options = [*tiny, "--epochs", 2, "--precision", "fp32", "--quiet"]
    at = options.index("--batch-size") + 1
    runs = {}
    for processes, machines in ((0, 1), (2, 1), (4, 2)):
        options[at] = 8 // max(processes, 1)
        folder = tmp_path / f"{processes}"
        meeting = f"127.0.0.1:{free_port()}" if machines > 1 else ""
        started = [
            start("train", *options, "--output", folder, processes=processes // machines, meeting=meeting)
            for _ in range(machines)
        ]
        printed = "".join(finish(launcher) for launcher in started)
        assert printed.count(": top-1 ") == 1, "one process speaks for all"
        runs[processes] = losses(folder)
    for processes in (2, 4):
        assert [row[:2] for row in runs[processes]] == [row[:2] for row in runs[0]]
        found, expected = ([row[2] for row in rows] for rows in (runs[processes], runs[0]))
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)


def test_a_run_killed_before_its_first_checkpoint_begins_again(aim_fast, trained, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text((trained / "recipe.yaml").read_text().replace(str(trained), str(folder)))
    (folder / "metrics.jsonl").write_text((trained / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    assert aim_fast("train", "--output", folder, "--resume", "--quiet")[0] == 0
    assert losses(folder) == losses(trained)
    ours, theirs = adapters(folder), adapters(trained)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_runs_in_one_folder_are_refused_while_the_first_lives(aim_fast, trained):
    from aim_fast.files import lock_run

    lock = lock_run(trained)
    status, _, err = aim_fast("train", "--output", trained, "--resume")
    lock.release()
    assert (status, err.count("\n")) == (2, 1)
    assert f"process {os.getpid()} is training into it" in err
    assert aim_fast("train", "--output", trained, "--resume", "--quiet")[0] == 0


def test_an_epoch_in_the_order_of_shards_is_ended_by_as_many_processes(aim_fast, tiny, motion_set, tmp_path):
    """Which clips are still to come depends on how they were divided; from the epoch's end on it may be otherwise."""
    shards, run = tmp_path / "shards", tmp_path / "run"
    data = ("--dataset", "webdataset", "--data-root", shards, "--read-order", "shards")
    assert aim_fast("shard", "--dataset", "ssv2", "--data-root", motion_set, "--output", shards)[0] == 0
    assert aim_fast("train", *tiny, *data, "--epochs", 2, "--output", run, "--quiet")[0] == 0
    state = find_checkpoint(run, "last") / "state.pt"
    saved = torch.load(state, weights_only=True)
    torch.save({**saved, "step": 7, "processes": 2}, state)  # of five steps an epoch
    status, _, err = aim_fast("train", "--output", run, "--resume")
    assert (status, "within an epoch whose shards 2 processes share" in err) == (2, True)
    torch.save({**saved, "step": 5, "processes": 2}, state)
    assert aim_fast("train", "--output", run, "--resume", "--quiet")[0] == 0


def test_resume_with_nothing_there_is_refused(aim_fast, tiny, tmp_path):
    status, _, err = aim_fast("train", *tiny, "--output", tmp_path / "none", "--resume")
    assert (status, err.count("\n")) == (2, 1)
    assert "does not exist" in err
    assert not (tmp_path / "none").exists()


def test_resume_with_another_recipe_is_refused_and_names_the_fields(aim_fast, tiny, trained):
    status, _, err = aim_fast("train", *tiny, "--epochs", 2, "--output", trained, "--resume", "--lr", 1)
    assert (status, err.count("\n")) == (2, 1)
    assert "lr: " in err


def test_a_folder_with_a_run_is_not_overwritten(aim_fast, tiny, trained):
    before = read_metrics(trained)
    status, _, err = aim_fast("train", *tiny, "--epochs", 2, "--output", trained)
    assert (status, err.count("\n")) == (2, 1)
    assert "--resume" in err
    assert read_metrics(trained) == before


def test_a_run_from_before_recipes_had_groups_is_resumed_and_evaluated(aim_fast, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    groups = yaml.safe_load((folder / "recipe.yaml").read_text())
    flat = {name: value for group in groups.values() for name, value in group.items()}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(flat, sort_keys=False))
    assert aim_fast("train", "--output", folder, "--resume", "--quiet")[0] == 0
    scores = [json.loads(aim_fast("eval", run, "--json", "-")[1]) for run in (folder, trained)]
    assert scores[0]["top1"] == scores[1]["top1"]
    status, _, err = aim_fast("train", "--output", folder, "--resume", "--lr", 1)
    assert (status, "lr: " in err) == (2, True)


def test_a_finished_run_resumes_to_nothing_more(aim_fast, trained):
    before = adapters(trained)
    assert aim_fast("train", "--output", trained, "--resume", "--quiet")[0] == 0
    after = adapters(trained)
    assert all(torch.equal(before[name], after[name]) for name in before)
