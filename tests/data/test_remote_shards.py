"""Shards from a web server that drops, stalls and truncates: the same clips in the same order as from a disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aim_fast.data import ClipLoader, load_or_build_index, read_dataset
from aim_fast.data.formats import chosen_dataset
from aim_fast.data.storage import transfer
from aim_fast.data.storage.cache import limit_tars, open_archive, tar_folder
from aim_fast.data.storage.mirror import mirror
from aim_fast.data.video.source import read_member
from aim_fast.errors import DataError, UsageError
from tests.data.shard_server import serving
from tests.data.test_shards import write_tar

pytest.importorskip("fsspec", reason="the storage extra is not here")
pytest.importorskip("aiohttp", reason="the storage extra is not here")

GIB = 2**30


@pytest.fixture(scope="module")
def shards(videos, tmp_path_factory) -> Path:
    """Four tars of two clips each for training, in a folder, and one at the root for validation."""
    root, kinds = tmp_path_factory.mktemp("remote") / "shards", ("vp9", "h264", "vp9_other")
    for number in range(5):
        names = {f"{number}{i}": videos[kinds[(number + i) % 3]] for i in range(2)}
        members = {f"{key}{file.suffix}": file for key, file in names.items()}
        members |= {f"{key}.cls": b"01"[int(key) % 2 :][:1] for key in names}
        write_tar(root / (f"train-{number:06d}.tar" if number < 4 else "val-000000.tar"), members)
    tars = list(root.glob("*.tar"))
    longest = max(path.stat().st_size for path in tars)
    for path in tars:  # zeros behind a tar's end are part of it
        os.truncate(path, longest)
    (root / "classes.txt").write_text("jump\nwalk\n")
    return root


@pytest.fixture
def server(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "STALLED", 0.4)
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    with serving(shards) as served:
        yield served


def batches(root, epoch=0, start=0, order="shards"):
    index = load_or_build_index("webdataset", root, "train", workers=1)
    loader = ClipLoader(
        index, train=True, batch_size=2, num_frames=4, img_size=32, seed=3, workers=2, decoder="pyav", read_order=order
    )
    try:
        return [(batch.frames, batch.labels, batch.indices) for batch in loader.batches(epoch, start=start)]
    finally:
        loader.close()


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for x, y in zip(one, other) for a, b in zip(x, y))


def kept():
    return sorted(tar_folder().glob("*.tar"))


def test_clips_come_in_the_order_of_a_disk_whatever_goes_wrong_on_the_way(server, shards):
    server.faults = {"": ["drop", "refuse"]}
    root = chosen_dataset("webdataset", server.address)[1]
    server.faults |= {
        "train-000000.tar": ["drop", "truncate"],
        "train-000001.tar": ["stall"],
        "train-000002.tar": ["short", "refuse"],
    }
    local, remote = read_dataset("webdataset", shards, "train"), read_dataset("webdataset", root, "train")
    assert (local.classes, [clip.id for clip in local.clips]) == (remote.classes, [clip.id for clip in remote.clips])
    assert not any(server.faults.values())
    assert {file.stat().st_size for file in kept()} == {file.stat().st_size for file in shards.glob("train*.tar")}
    for order in ("shards", "shuffled"):
        whole = batches(root, order=order)
        assert same(whole, batches(shards, order=order))
        assert same(whole[2:], batches(root, start=2, order=order))
    assert server.given["train-000003.tar"] == 1


def test_a_fault_that_stays_is_one_line_without_secrets_and_leaves_nothing(server):
    secret = server.address.replace("http://", "http://user:hunter2@") + "?sig=hunter3"
    root = mirror(secret)
    assert "sig=hunter3" in server.queries
    said = {
        "truncate": "tried 5 times",
        "stall": "no byte came for 0.4 s",
        "short": "it ended after",
        "refuse": "the server answers 503",
    }
    for number, (fault, words) in enumerate(said.items()):
        name = f"train-{number:06d}.tar"
        server.faults = {name: [fault, "always"]}
        with pytest.raises(DataError) as caught:
            open_archive(root / name)
        line = str(caught.value)
        assert line.startswith(f"{server.address}/{name}: the shard cannot be had")
        assert words in line
        assert "hunter" not in line
        assert "\n" not in line
        assert server.given[name] == transfer.TRIES
    assert not [path for path in tar_folder().iterdir() if path.suffix in (".tar", ".part")]


def test_tars_stay_within_the_bound_and_the_one_used_longest_ago_goes(server, shards):
    root, size = mirror(server.address), (shards / "train-000000.tar").stat().st_size
    limit_tars(2.9 * max(file.stat().st_size for file in shards.glob("*.tar")) / GIB)
    for number in (0, 1, 0, 2):
        os.close(open_archive(root / f"train-{number:06d}.tar"))
    assert [server.given[f"train-{number:06d}.tar"] for number in range(3)] == [1, 1, 1]
    assert len(kept()) == 2
    held = open_archive(root / "train-000000.tar")
    for number in (2, 3):  # 0 is the one that was used longest ago
        os.close(open_archive(root / f"train-{number:06d}.tar"))
    assert [server.given[f"train-{number:06d}.tar"] for number in range(4)] == [1, 1, 1, 1]
    assert len(os.pread(held, size, 0)) == size
    os.close(held)
    limit_tars(1000 / GIB)
    with pytest.raises(DataError, match="--shard-cache-gib"):
        open_archive(root / "val-000000.tar")


def test_processes_share_a_cache_of_less_than_all_shards(server, shards):
    root = mirror(server.address)
    limit_tars(2.2 * max(file.stat().st_size for file in shards.glob("*.tar")) / GIB)
    program = (
        "import os, sys; from aim_fast.data.storage.cache import open_archive\n"
        "for name in sys.argv[2:] * 3:\n"
        "    handle = open_archive(os.path.join(sys.argv[1], name))\n"
        "    with os.fdopen(handle, 'rb') as file: assert len(file.read()) == os.fstat(file.fileno()).st_size > 0\n"
    )
    names = [path.name for path in sorted(shards.glob("*.tar"))]
    orders = (names, names[::-1])
    started = [subprocess.Popen([sys.executable, "-c", program, str(root), *order]) for order in orders]
    assert [process.wait(60) for process in started] == [0, 0]
    assert len(kept()) <= 2
    assert not list(tar_folder().glob("*.part"))


def test_a_server_without_listings_is_read_by_the_manifest(server, shards, tmp_path):
    server.listing = False
    with pytest.raises(DataError, match="listing"):
        mirror(server.address)
    names = {"train": [f"train-{number:06d}.tar" for number in range(4)], "validation": ["val-000000.tar"]}
    manifest = shards / "shards.json"
    manifest.write_text(json.dumps({"shards": names}))
    try:
        root = mirror(f"{server.address}/")
        assert sorted(path.name for path in root.glob("*.tar")) == sorted(names["train"] + names["validation"])
    finally:
        manifest.unlink()


def test_a_shard_that_changed_is_fetched_and_indexed_again(server, shards, videos):
    changed = shards / "val-000000.tar"
    before = changed.read_bytes()
    first = read_dataset("webdataset", mirror(server.address), "validation")
    mirror.cache_clear()
    try:
        write_tar(changed, {"new.mp4": videos["h264"], "new.cls": b"1"})
        clips = read_dataset("webdataset", mirror(server.address), "validation").clips
        assert [clip.id for clip in clips] == ["new"] != [clip.id for clip in first.clips]
        assert read_member(clips[0].path) == videos["h264"].read_bytes()
    finally:
        changed.write_bytes(before)


def test_what_cannot_be_read_from_an_address_is_refused_without_its_secrets(server, aim_fast):
    with pytest.raises(UsageError, match="--dataset webdataset reads addresses"):
        chosen_dataset("ssv2", "s3://bucket/data")
    with pytest.raises(UsageError, match="knows no nowhere://"):
        chosen_dataset("webdataset", "nowhere://user:hunter2@bucket")
    status, _, err = aim_fast("index", "--dataset", "webdataset", "--data-root", f"{server.address}/none?sig=hunter2")
    assert (status, err.count("\n")) == (2, 1)
    assert f"{server.address}/none" in err
    assert "hunter" not in err


def test_a_run_says_its_address_without_secrets():
    from aim_fast.training.recipe_file import load_recipe

    text = load_recipe(None, {"dataset": "webdataset", "data_root": "https://me:hunter2@host/a?sig=hunter3"}).to_yaml()
    assert "data_root: https://host/a\n" in text
    assert "hunter" not in text
