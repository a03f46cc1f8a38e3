"""What is written is whole or not there, has the mode of the umask, and one process at a time writes where it must."""

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from aim_fast import create_model
from aim_fast.errors import CheckpointError, DataError
from aim_fast.files import (
    check_room,
    check_unlocked,
    clear_unfinished,
    free_bytes,
    lock_run,
    one_builder,
    replacing,
    write_whole,
)
from aim_fast.models.identity import Identity
from aim_fast.models.loading import save_trunk
from aim_fast.training.checkpoint import save_checkpoint
from aim_fast.training.conversion import convert
from aim_fast.training.evaluation import Evaluation, draw_confusion
from aim_fast.training.metrics import MetricsLog, draw_curves
from aim_fast.training.recipe import Recipe
from aim_fast.training.timeline import Timeline
from aim_fast.training.trained_file import write_trained
from aim_fast.training.trained_model import TrainedModel

OLD, NEW = b"old" * 100_000, b"new" * 100_000


def two_classes():
    model = create_model("aim_vit_demo", num_classes=2)
    return TrainedModel(model, Identity("aim_vit_demo", model.config, ["a", "b"]), Recipe(), "", [])


@contextlib.contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def write_folder(path, content=NEW):
    with replacing(path) as temporary:
        (temporary / "inner").mkdir(parents=True)
        for name in ("a", "inner/b"):
            (temporary / name).write_bytes(content)


def read_folder(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_small_file_is_replaced_whole(tmp_path):
    path = tmp_path / "recipe.yaml"
    write_whole(path, "old")
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def test_a_folder_and_a_link_are_replaced_whole(tmp_path):
    for content in (OLD, NEW):
        write_folder(tmp_path / "run", content)
        with replacing(tmp_path / "last") as link:
            link.symlink_to("run", target_is_directory=True)
        assert read_folder(tmp_path / "last") == {"a": content, "inner/b": content}
    assert sorted(os.listdir(tmp_path)) == ["last", "run"]


def interrupted(path):
    with replacing(path) as temporary:
        temporary.mkdir() if path.is_dir() else temporary.write_bytes(NEW[:10])
        raise KeyboardInterrupt


def test_a_writer_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    write_whole(tmp_path / "file", OLD)
    write_folder(tmp_path / "folder", OLD)
    for name in ("file", "folder"):
        with pytest.raises(KeyboardInterrupt):
            interrupted(tmp_path / name)
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "folder", NEW)
    assert (tmp_path / "file").read_bytes() == OLD
    assert read_folder(tmp_path / "folder") == {"a": OLD, "inner/b": OLD}
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, os.fsdecode(b"caf\xe9.json"), ".hidden", "a.part"])
def test_every_name_that_can_be_can_be_written(tmp_path, name):
    write_whole(tmp_path / name, "text")
    assert os.listdir(tmp_path) == [name]


def test_threads_that_write_one_place_at_once_leave_one_of_theirs_whole(tmp_path):
    contents = [bytes([number]) * 200_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_whole(tmp_path / "file", content), contents * 4))
    assert (tmp_path / "file").read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_no_file_is_written_to_and_stays(tmp_path):
    (tmp_path / "nowhere").symlink_to("/dev/null")
    write_whole(tmp_path / "nowhere", "text")
    assert (tmp_path / "nowhere").is_char_device()
    assert os.listdir(tmp_path) == ["nowhere"]


KILLED = """
import os, signal, sys
from pathlib import Path
from aim_fast.files import replacing

os.replace = os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with replacing(Path(sys.argv[1])) as temporary:
    if sys.argv[2] == "folder":
        temporary.mkdir()
        temporary /= "a"
    temporary.write_text("new")
"""


@contextlib.contextmanager
def small_files(size):
    """Writes beyond so many bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_between_writing_and_renaming_leaves_the_old_one_whole(tmp_path, kind):
    path = tmp_path / "place"
    write_folder(path, OLD) if kind == "folder" else write_whole(path, OLD)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), kind], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    found = read_folder(path) if kind == "folder" else path.read_bytes()
    assert found == ({"a": OLD, "inner/b": OLD} if kind == "folder" else OLD)
    (left,) = set(os.listdir(tmp_path)) - {"place"}
    assert left.startswith(".place.")
    (tmp_path / "partly").write_text("a user's own")
    clear_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["partly", "place"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_full_disk_leaves_the_old_one_whole_and_nothing_beside_it(tmp_path, kind):
    path = tmp_path / "place"
    write_folder(path, OLD) if kind == "folder" else write_whole(path, OLD)
    with small_files(1000), pytest.raises(OSError, match="File too large"):
        write_folder(path) if kind == "folder" else write_whole(path, NEW)
    found = read_folder(path) if kind == "folder" else path.read_bytes()
    assert found == ({"a": OLD, "inner/b": OLD} if kind == "folder" else OLD)
    assert os.listdir(tmp_path) == ["place"]


@pytest.mark.parametrize("name", ["out.safetensors", "out.pth", "out"])
def test_a_model_that_does_not_fit_on_the_disk_is_one_line_and_leaves_nothing(aim_fast, tmp_path, name):
    write_trained(two_classes(), tmp_path / "in.pth")
    with small_files(20_000):
        status, _, err = aim_fast("convert", tmp_path / "in.pth", tmp_path / name)
    assert (status, err.count("\n")) == (2, 1)
    assert f"{tmp_path / name}: cannot be written (File too large); name another place" in err
    assert os.listdir(tmp_path) == ["in.pth"]


def write_everything(folder):
    """By each writer of training that needs no data set; tests/data holds those of the data."""
    trained = two_classes()
    write_whole(folder / "text", "text")
    write_folder(folder / "folder")
    save_trunk(trained.model, folder / "trunk.safetensors")
    for name in ("model.pth", "model.safetensors"):
        write_trained(trained, folder / name)
    save_checkpoint(folder / "checkpoints", ("last", "best"), {"x": torch.ones(2)}, {"step": 1}, trained.identity)
    convert(str(folder / "model.pth"), str(folder / "converted"), {})
    log = MetricsLog(folder)
    log.write("train", 1, epoch=1, loss=1.0)
    log.close()
    draw_curves(folder)
    draw_confusion(Evaluation(torch.eye(2), torch.arange(2), torch.arange(2), 0), ["a", "b"], folder / "confusion.png")
    Timeline("v", ["a", "b"], [(0.0, 1.0)], torch.ones(1, 2)).draw(folder / "timeline.png")
    lock_run(folder).release()
    with one_builder([folder / "lock"], "a thing"):
        pass


@pytest.mark.parametrize(("mask", "file", "directory"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_what_is_written_has_the_mode_of_the_umask(tmp_path, mask, file, directory):
    folder = tmp_path / "made"
    with umask(mask):
        folder.mkdir()
        write_everything(folder)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert len(modes) > 20
    odd = {path.name: oct(mode) for path, mode in modes.items() if mode != (directory if path.is_dir() else file)}
    assert not odd


def test_too_little_room_is_said_in_one_wording(tmp_path):
    place = tmp_path / "not" / "there" / "yet"
    free = free_bytes(place)
    assert abs(free - shutil.disk_usage(tmp_path).free) < 2**30
    check_room(place, 0, "the shards need", "take a larger disk")
    with pytest.raises(DataError) as caught:
        check_room(place, free + 5 * 2**40, "the shards need", "take a larger disk")
    said = str(caught.value)
    assert said.startswith(f"{place}: the shards need ")
    assert said.count("GiB") == 2
    assert said.endswith(" GiB are free; take a larger disk")


HOLDER = """
import sys, time
from pathlib import Path
from aim_fast.files import lock_run, one_builder
if sys.argv[1] == "run":
    lock = lock_run(Path(sys.argv[2]))
    print("held", flush=True)
    time.sleep(60)
with one_builder([Path(sys.argv[2])], "a thing"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(kind, place):
    with subprocess.Popen([sys.executable, "-c", HOLDER, kind, str(place)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def test_the_lock_goes_with_a_holder_that_is_killed(tmp_path, capfd):
    place = tmp_path / "new" / "lock"
    with holder("builder", place) as process:
        entered = threading.Event()

        def enter():
            with one_builder([place], "the index"):
                entered.set()

        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.5)
        process.kill()
        assert entered.wait(10)
        thread.join()
    assert capfd.readouterr().err == f"waiting for process {process.pid}, which makes the index\n"


def test_a_place_that_cannot_be_written_is_passed_over(tmp_path):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "lock", tmp_path / "lock"]
    with one_builder(places, "a thing"):
        assert places[1].exists()
    with one_builder(places[:1], "a thing"):
        pass


def test_a_second_run_in_a_folder_is_refused_at_once_until_the_first_is_killed(tmp_path):
    with holder("run", tmp_path) as process:
        for refused in (check_unlocked, lock_run):
            with pytest.raises(CheckpointError, match=f"{tmp_path}: process {process.pid} is training into it; wait"):
                refused(tmp_path)
        process.kill()
        process.wait()
        check_unlocked(tmp_path)
        lock_run(tmp_path).release()


def test_looking_at_a_lock_makes_nothing_and_many_may_look_at_once(tmp_path):
    check_unlocked(tmp_path / "run")
    assert not list(tmp_path.iterdir())
    lock_run(tmp_path).release()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: check_unlocked(tmp_path), range(400)))


def test_a_file_system_without_locks_is_taken_as_it_is(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    check_unlocked(tmp_path)
    assert lock_run(tmp_path) is None
    entered = False
    with one_builder([tmp_path / "lock"], "a thing"):
        entered = True
    assert entered


def test_a_run_that_cannot_be_locked_as_its_place_is_a_file_raises_what_the_system_says(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match="run"):
        lock_run(tmp_path / "run")
