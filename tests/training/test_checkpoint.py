"""Checkpoints: whole or not there at all, and every damaged one named."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from aim_fast.errors import CheckpointError
from aim_fast.models.identity import Identity
from aim_fast.training.checkpoint import (
    find_checkpoint,
    read_checkpoint,
    save_checkpoint,
)

pytestmark = pytest.mark.stack

IDENTITY = Identity("aim_vit_demo", {"num_frames": 8, "adapters": ["spatial"]}, ["a", "b,c"], "ab12", "trunk.pt")


def save(folder, step, names=("last",), **extra):
    tensors = {"fc_cls.weight": torch.full((2, 3), float(step)), "temporal_embedding": torch.ones(1, 8, 4)}
    save_checkpoint(folder, names, tensors, {"step": step, **extra}, IDENTITY)
    return tensors


def test_a_checkpoint_reads_back_with_its_identity(tmp_path):
    tensors = save(tmp_path, 7, optimizer={"lr": 0.1})
    checkpoint = read_checkpoint(find_checkpoint(tmp_path / "last"), with_state=True)
    assert checkpoint.identity == IDENTITY
    assert checkpoint.state == {"step": 7, "optimizer": {"lr": 0.1}}
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in tensors.items())


def test_half_precision_tensors_are_kept_in_fp32(tmp_path):
    save_checkpoint(tmp_path, ("last",), {"x": torch.ones(2, dtype=torch.bfloat16)}, {"step": 1}, IDENTITY)
    assert read_checkpoint(tmp_path / "last").tensors["x"].dtype == torch.float32


def test_the_adapters_of_a_b16_run_are_under_60_mb(tmp_path):
    from aim_fast import create_model

    model = create_model("aim_vit_b16_clip", num_tadapter=2, num_classes=174)
    save_checkpoint(tmp_path, ("last",), dict(model.trainable_parameters()), {"step": 1}, IDENTITY)
    assert (tmp_path / "last" / "adapters.safetensors").stat().st_size < 60e6


def test_best_outlives_last_and_nothing_else_is_kept(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, ("last", "best") if step == 2 else ("last",))
    assert read_checkpoint(tmp_path / "best").tensors["fc_cls.weight"][0, 0] == 2
    assert read_checkpoint(tmp_path / "last").tensors["fc_cls.weight"][0, 0] == 5
    assert sorted(os.listdir(tmp_path)) == ["best", "last", "step-00000002", "step-00000005"]


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path):
    save(tmp_path, 3, ("last", "best"))
    save_checkpoint(tmp_path, ("last",), {"y": torch.zeros(1)}, {"step": 3}, IDENTITY)
    assert set(read_checkpoint(tmp_path / "last").tensors) == {"y"}


def test_a_kill_at_any_system_call_leaves_a_whole_checkpoint(tmp_path):
    """Ends the process at each of the file-system calls in turn; the last checkpoint must load every time."""
    program = textwrap.dedent(
        """
        import os, shutil, sys
        from pathlib import Path
        import torch
        from aim_fast.models.identity import Identity
        from aim_fast.training.checkpoint import read_checkpoint, save_checkpoint

        identity = Identity("m", {}, ["a"], "00", "w")

        def run(folder, die_at):
            calls = 0
            def counted(function):
                def call(*arguments, **keywords):
                    nonlocal calls
                    calls += 1
                    if calls == die_at:
                        os._exit(9)
                    return function(*arguments, **keywords)
                return call
            for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (Path, "rename"), (Path, "mkdir"),
                                 (Path, "symlink_to"), (torch, "save"), (Path, "write_bytes")):
                setattr(module, name, counted(getattr(module, name)))
            save_checkpoint(folder, ("last", "best"), {"x": torch.full((3,), 2.0)}, {"step": 2}, identity)
            os._exit(0)

        root = Path(sys.argv[1])
        for die_at in range(1, 100):
            folder = root / str(die_at)
            save_checkpoint(folder, ("last", "best"), {"x": torch.full((3,), 1.0)}, {"step": 1}, identity)
            child = os.fork()
            if child == 0:
                run(folder, die_at)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            for name in ("last", "best"):
                read = read_checkpoint(folder / name, with_state=True)
                assert read.tensors["x"][0] == read.state["step"], (die_at, name)
            if status == 0:
                break
            save_checkpoint(folder, ("last", "best"), {"x": torch.full((3,), 3.0)}, {"step": 3}, identity)
            assert sorted(os.listdir(folder)) == ["best", "last", "step-00000003"], os.listdir(folder)
        print(die_at)
        """
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 8  # it did die at many places


def test_an_unwritable_folder_is_one_clear_line(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match="not written"):
        save(tmp_path / "run", 1)


@pytest.mark.parametrize("damage", ["truncate", "text", "gone", "plain"])
def test_a_damaged_file_of_adapters_is_named(tmp_path, damage):
    save(tmp_path, 1)
    path = tmp_path / "last" / "adapters.safetensors"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "text":
        path.write_text("not tensors")
    elif damage == "gone":
        path.unlink()
    else:
        from safetensors.torch import save_file

        save_file({"x": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="adapters.safetensors") as caught:
        read_checkpoint(tmp_path / "last")
    assert "\n" not in str(caught.value)


def test_state_that_is_a_plain_pickle_is_not_run(tmp_path):
    import pickle

    save(tmp_path, 1)
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    (tmp_path / "last" / "state.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="state.pt"):
        read_checkpoint(tmp_path / "last", with_state=True)
    assert not marker.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other", "gone"])
def test_a_damaged_state_is_told_in_a_short_line(tmp_path, damage):
    save(tmp_path, 1)
    path = tmp_path / "last" / "state.pt"
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"cut": path.read_bytes()[:-200], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "last", with_state=True)
    line = str(caught.value).replace(str(path), "state.pt")
    assert line.startswith("state.pt: missing" if damage == "gone" else "state.pt: damaged")
    assert "--output" in line
    assert len(line) < 120
    assert read_checkpoint(tmp_path / "last").tensors


def test_a_run_its_links_and_its_file_all_name_a_checkpoint(tmp_path):
    save(tmp_path / "checkpoints", 1, ("last", "best"))
    for path in ("", "checkpoints/last", "checkpoints/best/adapters.safetensors"):
        assert (find_checkpoint(tmp_path / path) / "state.pt").exists()
    assert find_checkpoint(tmp_path, "last").name == "last"


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_what_is_no_run_is_refused(tmp_path, what):
    path = tmp_path / what
    if what == "empty":
        path.mkdir()
    elif what == "file":
        path.write_text("")
    with pytest.raises(CheckpointError):
        find_checkpoint(path)
