"""Tar shards: what is written comes back, in any order, to the bit; and every way in which a shard can be wrong."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aim_fast.data import ClipLoader, load_or_build_index, read_dataset
from aim_fast.data.copies.shard import write_shards
from aim_fast.data.formats.shard_index import read_shard
from aim_fast.data.index import indexing
from aim_fast.data.plan.shard_order import shard_order
from aim_fast.data.video.decode import decode_frames
from aim_fast.data.video.probe import probe
from aim_fast.data.video.source import TarMember, file_state, read_member, tar_member
from aim_fast.errors import DataError, UsageError


def write_tar(path: Path, members: dict[str, bytes | Path]) -> Path:
    """A tar as WebDataset's own writer makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def made(videos, broken, tmp_path_factory) -> Path:
    """A folder with "data", fourteen clips of two classes, VP9 and H.264, one of them broken, and "shards" of them."""
    top = tmp_path_factory.mktemp("made")
    a, b, c = videos["vp9"], videos["vp9_other"], videos["h264"]
    tree = {"train/jump": [a, b, c, broken["text"], a, b], "train/walk": [b, a, c, a], "val/jump": [a, c]}
    for folder, files in (tree | {"val/walk": [b, a]}).items():
        (top / "data" / folder).mkdir(parents=True)
        for number, file in enumerate(files):
            shutil.copy2(file, top / "data" / folder / f"{number:02d}{file.suffix}")
    indices = [load_or_build_index("folder", top / "data", split) for split in ("train", "validation")]
    report = write_shards(indices, top / "shards", shard_bytes=60_000)
    assert report.clips == {"train": 9, "validation": 4}
    assert [row.id for row in report.left_out] == ["jump/03.webm"]
    assert report.shards["train"] > 2
    return top


@pytest.fixture
def root(made, tmp_path) -> Path:
    shutil.copytree(made / "data", tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def sharded(made, root, tmp_path):
    """(index of the files, folder of the shards)."""
    shutil.copytree(made / "shards", tmp_path / "shards")
    return load_or_build_index("folder", root, "train"), tmp_path / "shards"


def by_id(index):
    return {row.id: row for row in index.rows}


def test_shards_hold_the_same_clips_labels_and_bytes(sharded):
    files, shards = sharded
    listing = read_dataset("webdataset", shards, "train")
    assert listing.classes == files.classes
    rows = by_id(files)
    assert {clip.id for clip in listing.clips} == {row.id for row in rows.values() if row.healthy}
    for clip in listing.clips:
        assert clip.label == rows[clip.id].label
        assert read_member(clip.path) == Path(rows[clip.id].path).read_bytes()
    labels = [clip.label for clip in listing.clips]
    assert labels not in (sorted(labels), sorted(labels, reverse=True))  # mixed, not one class after the other


def test_the_index_is_carried_over_and_nothing_is_scanned(sharded, monkeypatch):
    files, shards = sharded
    monkeypatch.setattr(indexing, "scan", lambda *_, **__: pytest.fail("scanned"))
    index = load_or_build_index("webdataset", shards, "train")
    rows = by_id(files)
    for row in index.rows:
        same = rows[row.id]
        assert (row.frames, row.height, row.width, row.codec) == (same.frames, same.height, same.width, same.codec)
    monkeypatch.undo()
    again = load_or_build_index("webdataset", shards, "train", rebuild=True)
    assert again == index


def test_decoding_from_a_shard_gives_the_frames_of_the_file(sharded):
    files, shards = sharded
    rows = by_id(files)
    for clip in read_dataset("webdataset", shards, "train").clips:
        assert np.array_equal(decode_frames(clip.path, [1, 7, 15]), decode_frames(rows[clip.id].path, [1, 7, 15]))
        assert probe(clip.path).frames == rows[clip.id].frames


def clips_of(index, epochs=1, **options) -> list[tuple[str, torch.Tensor]]:
    loader = ClipLoader(index, train=True, batch_size=2, img_size=32, num_frames=4, workers=2, **options)
    out = []
    for epoch in range(epochs):
        for batch in loader.batches(epoch):
            counted = zip(batch.indices.tolist(), batch.frames, batch.weights.tolist())
            out += [(index.rows[i].id, frames) for i, frames, weight in counted if weight]
    loader.close()
    return out


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_batches_from_shards_are_those_from_files_to_the_bit(sharded, decoder):
    from dataclasses import replace

    files, shards = sharded
    index = load_or_build_index("webdataset", shards, "train")
    rows = by_id(files)
    same = replace(files, rows=[rows[row.id] for row in index.rows])  # the same clips in the order of the shards
    for (name, frames), (other, expected) in zip(
        clips_of(index, decoder=decoder), clips_of(same, decoder=decoder), strict=True
    ):
        assert name == other
        assert torch.equal(frames, expected)


def test_a_shard_that_changed_since_the_scan_fails_its_clips_and_not_the_run(sharded):
    _, shards = sharded
    index = load_or_build_index("webdataset", shards, "train")
    victim = tar_member(index.rows[0].path)
    data = bytearray(Path(victim.archive).read_bytes())
    data[victim.offset : victim.offset + victim.size] = bytes(victim.size)
    Path(victim.archive).write_bytes(bytes(data))
    loader = ClipLoader(index, train=True, batch_size=3, img_size=32, num_frames=4, workers=2)
    assert len(list(loader.batches(0))) == 3
    loader.close()
    assert loader.counts.names.keys() == {index.rows[0].path}
    assert loader.counts.replaced == 1


def test_reading_whole_shards_counts_every_clip_once_and_repeats(sharded):
    _, shards = sharded
    index = load_or_build_index("webdataset", shards, "train")
    one = [name for name, _ in clips_of(index, read_order="shards")]
    assert sorted(one) == sorted(row.id for row in index.rows)
    assert one == [name for name, _ in clips_of(index, read_order="shards")]
    two = [name for rank in range(2) for name, _ in clips_of(index, read_order="shards", rank=rank, world=2)]
    assert sorted(two) == sorted(one)
    loader = ClipLoader(index, train=True, batch_size=2, img_size=32, num_frames=4, workers=2, read_order="shards")
    whole, late = list(loader.batches(3)), list(loader.batches(3, start=2))
    for batch, other in zip(whole[2:], late, strict=True):
        assert torch.equal(batch.frames, other.frames)
    loader.close()


@pytest.mark.parametrize(("world", "batch_size"), [(1, 4), (2, 3), (3, 8), (8, 64)])
def test_shard_order_reads_each_shard_in_one_go_in_few_processes(world, batch_size):
    archives = [f"{number:03d}.tar" for number in range(20) for _ in range(50)]
    order, counts = shard_order(archives, 0, 1, world, batch_size, window=100)
    assert sorted(order[counts].tolist()) == list(range(1000))
    assert len(order) == -(-1000 // (world * batch_size)) * world * batch_size
    places, counted = order.reshape(-1, world, batch_size), counts.reshape(-1, world, batch_size)
    for rank in range(world):
        seen = places[:, rank][counted[:, rank]] // 50
        assert len(np.unique(seen)) <= 20 // world + 2
        for shard in np.unique(seen):  # all of a shard within two windows
            at = np.flatnonzero(seen == shard)
            assert at[-1] - at[0] < 200
    assert order.tolist() != shard_order(archives, 0, 2, world, batch_size, window=100)[0].tolist()
    assert order.tolist() == shard_order(archives, 0, 1, world, batch_size, window=100)[0].tolist()


def test_reading_shards_in_order_is_refused_for_files(root):
    index = load_or_build_index("folder", root, "train")
    with pytest.raises(UsageError, match=r"needs tar shards.*aim-fast shard"):
        ClipLoader(index, train=True, batch_size=2, num_frames=4, read_order="shards")
    with pytest.raises(UsageError, match=r"unknown read order"):
        ClipLoader(index, train=True, batch_size=2, num_frames=4, read_order="shard")


def test_an_interrupted_command_goes_on_and_the_shards_are_the_same(sharded, root, tmp_path):
    _, shards = sharded
    indices = [load_or_build_index("folder", root, split) for split in ("train", "validation")]
    before = {path.name: path.read_bytes() for path in shards.glob("*.tar")}
    kept = shards / "train-000000.tar"
    state = kept.stat().st_mtime_ns
    for path in list(shards.glob("*.tar"))[1:]:
        if path != kept:
            path.rename(path.with_name(path.name + ".part"))
    write_shards(indices, shards, shard_bytes=60_000)
    assert {path.name: path.read_bytes() for path in shards.glob("*.tar")} == before
    assert kept.stat().st_mtime_ns == state
    assert not list(shards.glob("*.part"))


def test_other_clips_in_the_same_folder_too_little_disk_and_pictures_are_refused(sharded, root, tmp_path, monkeypatch):
    _, shards = sharded
    index = load_or_build_index("folder", root, "train")
    with pytest.raises(UsageError, match=r"holds shards of other clips or sizes"):
        write_shards([index], shards)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match=r"or something else"):
        write_shards([index], tmp_path / "full")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**6, used=10**6, free=1000))
    with pytest.raises(DataError, match=r"the shards need 0\.0 GiB and 0\.0 GiB are free"):
        write_shards([index], tmp_path / "new")
    assert not list((tmp_path / "new").glob("*.tar"))


def test_shards_of_other_tools_by_folder_json_and_class_names(tmp_path, videos):
    video = videos["vp9"]
    write_tar(tmp_path / "train" / "a.tar", {"x/1.webm": video, "x/1.json": b'{"label": "run"}'})
    write_tar(tmp_path / "train" / "b.tar", {"y.json": b'{"cls": "jump"}', "y.webm": video, "y.txt": b"a caption"})
    write_tar(tmp_path / "val" / "a.tar", {"z.mp4": videos["h264"], "z.cls": b"run"})
    train, validation = (read_dataset("webdataset", tmp_path, split) for split in ("train", "validation"))
    assert train.classes == validation.classes == ["jump", "run"]
    assert [(clip.id, clip.label) for clip in train.clips] == [("x/1", 1), ("y", 0)]
    assert [clip.label for clip in validation.clips] == [1]
    assert len(load_or_build_index("webdataset", tmp_path, "validation").healthy) == 1


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"1.webm": b"v", "1.cls": b"0", "2.cls": b"1"}, r"sample 2 has a label but no video \(1 such\)"),
        ({"1.webm": b"v", "1.cls": b"0", "2.webm": b"v"}, r"sample 2 has no \.cls or \.json"),
        ({"1.webm": b"v", "1.mp4": b"v", "1.cls": b"0"}, r"sample 1 has two videos, 1\.webm and 1\.mp4"),
        ({"1.webm": b"v", "1.json": b"{"}, r"1\.json is not valid JSON"),
        ({"1.webm": b"v", "1.json": b"[]"}, r"1\.json is no object"),
        ({"1.webm": b"v", "1.cls": b"9"}, r"sample 1 has label '9', none of the 2 classes"),
        ({"1.webm": b"v", "1.cls": b"fly"}, r"sample 1 has label 'fly'"),
    ],
)
def test_shards_with_missing_or_wrong_members(tmp_path, members, said):
    shard = write_tar(tmp_path / "train-000000.tar", members)
    (tmp_path / "classes.txt").write_text("jump\nrun\n")
    with pytest.raises(DataError, match=said) as error:
        read_dataset("webdataset", tmp_path, "train")
    assert str(shard) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_truncation_of_a_shard_is_told(tmp_path):
    shard = write_tar(
        tmp_path / "train-000000.tar", {f"{i}.{e}": b"0" * 700 for i in range(3) for e in ("webm", "cls")}
    )
    whole = shard.read_bytes()
    end = 6 * (512 + 1024)
    for size in [*range(1, end, 500), end]:  # the last: whole members, but no end of the archive
        shard.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"is cut off or no plain tar|end-of-archive"):
            read_shard(shard, tmp_path)
    shard.write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(DataError, match=r"no plain tar.*unpack"):
        read_shard(shard, tmp_path)


def test_a_shard_that_links_to_nothing_is_named(tmp_path):
    (tmp_path / "train-000000.tar").symlink_to("nowhere.tar")
    with pytest.raises(DataError, match=r"train-000000\.tar cannot be read: No such file"):
        read_dataset("webdataset", tmp_path, "train")


def test_a_missing_shard_is_named(sharded, tmp_path, videos):
    _, shards = sharded
    last = sorted(shards.glob("train-*.tar"))[-1]
    last.unlink()
    with pytest.raises(DataError, match=rf"1 train shards are missing, the first is {last.name}"):
        read_dataset("webdataset", shards, "train")
    for number in (0, 2):
        write_tar(tmp_path / "other" / f"train-{number:04d}.tar", {"1.webm": videos["vp9"], "1.cls": b"0"})
    with pytest.raises(DataError, match=r"the first is train-0001\.tar"):
        read_dataset("webdataset", tmp_path / "other", "train")
    with pytest.raises(DataError, match=r"no shard of the validation split.*found: train-0000\.tar"):
        read_dataset("webdataset", tmp_path / "other", "validation")


def test_the_offset_index_is_used_while_the_shard_is_the_same(sharded, monkeypatch):
    _, shards = sharded
    shard = shards / "train-000000.tar"
    first = read_shard(shard, shards)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("read the tar"))
        assert read_shard(shard, shards) == first
    (shards / ".aim-fast" / "shards" / "train-000000.tar.json").write_text("{}")
    assert read_shard(shard, shards) == first
    os.utime(shard, ns=(1, 1))
    assert read_shard(shard, shards) == first


@pytest.mark.parametrize("archive", ["/a/b.tar", "/x@1+2/y.tar", "/with space/ü.tar"])
def test_a_members_path_is_read_back(archive):
    member = TarMember(archive, 1536, 90, "0001.webm")
    assert tar_member(member.path) == member
    assert member.path.endswith(".webm")
    assert tar_member(archive) is None
    assert file_state(member.path) == (-1, 0)


def test_the_shard_command_trains_and_evaluates(aim_fast, motion_set, trunk, tmp_path):
    shards, run = tmp_path / "shards", tmp_path / "run"
    source = tmp_path / "ssv2"
    shutil.copytree(motion_set, source, ignore=shutil.ignore_patterns(".aim-fast"))
    (source / "20bn-something-something-v2" / "3.webm").write_text("no video")
    command = ("shard", "--dataset", "ssv2", "--data-root", source, "--output", shards, "--shard-size", 1)
    status, out, err = aim_fast(*command)
    assert status == 0, err
    assert "train: 39 clips" in out
    assert "3.webm: left out" in err
    assert json.loads((shards / "shards.json").read_text())["shards"].keys() == {"train", "validation"}
    assert aim_fast(*command)[0] == 0
    options = ("--dataset", "webdataset", "--data-root", shards, "--weights", trunk, "--model", "aim_vit_demo",
               "--frames", 4, "--epochs", 1, "--output", run, "--read-order", "shards", "--quiet")  # fmt: skip
    assert aim_fast("train", *options)[0] == 0
    status, out, err = aim_fast("eval", run, "--json", "-")
    assert status == 0, err
    assert json.loads(out)["videos"] == 16
