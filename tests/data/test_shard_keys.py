"""Tar shards of other writers: keys with dots, links, folders, and members that are no part of a sample."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from aim_fast.data import load_or_build_index, read_dataset
from aim_fast.data.formats.shard_index import read_shard
from aim_fast.data.video.source import read_member
from aim_fast.errors import DataError


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def labels(root: Path, members: list[tuple[str, bytes]]) -> dict[str, str]:
    """Label of each sample by its key, the same from the tar and from what was kept of it."""
    shard = write_tar(root / "train-000000.tar", members)
    first, again = read_shard(shard, root), read_shard(shard, root)
    assert first == again
    return {sample.key: sample.label for sample in first.samples}


def pairs(keys: list[str], video: str = "webm", label: str = "cls") -> list[tuple[str, bytes]]:
    """Members of these samples, labelled by their number."""
    return [pair for n, key in enumerate(keys) for pair in ((f"{key}.{video}", b"v"), (f"{key}.{label}", b"%d" % n))]


@pytest.mark.parametrize(
    "keys",
    [
        ["v.1", "v.2", "v.3"],  # all of one key by WebDataset's rule
        ["a", "b.take2", "c", "d.take2"],  # some
        ["2024.05.01-10.22", "2024.05.01-10.23"],
        ["day.1/a.b", "day.1/a.c", "day.2/a.b"],
        ["./x.1", "./x.2"],
        ["v.1", "v.1.2", "v"],
        ["é.1", "é..2"],
    ],
)
@pytest.mark.parametrize("extensions", [("webm", "cls"), ("MKV", "CLS"), ("mts", "cls")])
def test_all_samples_are_found_whatever_dots_their_keys_have(tmp_path, keys, extensions):
    assert labels(tmp_path, pairs(keys, *extensions)) == {key: str(n) for n, key in enumerate(keys)}
    members = sorted(pairs(keys, *extensions), reverse=True)  # in any order
    assert labels(tmp_path, members) == {key: str(n) for n, key in enumerate(keys)}


@pytest.mark.parametrize("video", ["video.mp4", "mp4"])
@pytest.mark.parametrize("label", ["cls", "label.cls", "json", "label.json"])
def test_extensions_of_several_parts_are_of_the_sample_before_them(tmp_path, video, label):
    content = b'{"label": 4}' if label.endswith("json") else b"4"
    members = [
        (f"{n}.{tail}", data) for n in "xyz" for tail, data in ((video, b"v"), (label, content), ("a.b.jpg", b""))
    ]
    key = video.removesuffix("mp4").rstrip(".")
    assert labels(tmp_path, members) == {".".join(filter(None, (n, key))): "4" for n in "xyz"}
    found = read_shard(tmp_path / "train-000000.tar", tmp_path)
    assert (found.beside, found.lost) == ([], [])


def test_other_texts_of_a_sample_do_not_change_its_label(tmp_path):
    members = [*pairs(["v1", "v2.a"]), ("v1.pose.json", b"[1, 2]"), ("v1.verb.cls", b"7"), ("v2.a.meta.json", b"{")]
    assert labels(tmp_path, members) == {"v1": "0", "v2.a": "1"}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("v.1.mp4", b""), ("v.2.mp4", b""), ("v.cls", b"0")], r"sample v has 2 videos, v\.1 and v\.2 .* v\.cls"),
        ([("x.rgb.mp4", b""), ("x.flow.mp4", b""), ("x.cls", b"0")], r"sample x has 2 videos"),
        (
            [("x.mp4", b""), ("x.verb.cls", b"0"), ("x.noun.cls", b"1")],
            r"sample x has several labels, x\.verb\.cls and",
        ),
        ([("v.1.mp4", b""), ("v.2.cls", b"0")], r"sample v\.1 has no \.cls or \.json of its name; is v\.2\.cls its"),
        ([*pairs(["v.1", "v.2"]), ("v.3.cls", b"0")], r"sample v\.3 has a label but no video \(1 such\)"),
        ([*pairs(["v.1"]), ("v.3.r3d", b""), ("v.3.json", b'{"label": 1}')], r"sample v\.3 has a label but no video"),
        (
            [("a.1.mp4", b"v"), ("a.1.webm", b"v"), ("a.1.cls", b"0")],
            r"sample a\.1 has two videos, a\.1\.mp4 and a\.1\.w",
        ),
        (
            [("a.1.mp4", b"v"), ("a.1.cls", b"0"), ("a.1.mp4", b"w")],
            r"sample a\.1 has two videos, both called a\.1\.mp4",
        ),
        (
            [("a.1.mp4", b"v"), ("a.1.cls", b"0"), ("a.1.cls", b"1")],
            r"sample a\.1 has two labels, both called a\.1\.cls",
        ),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_by_the_name_of_the_sample(tmp_path, members, said):
    shard = write_tar(tmp_path / "train-000000.tar", members)
    with pytest.raises(DataError, match=said) as error:
        read_dataset("webdataset", tmp_path, "train")
    assert str(shard) in str(error.value)
    assert "write the shard again" in str(error.value)


def test_a_sample_without_a_label_is_named_with_its_whole_key(tmp_path):
    write_tar(tmp_path / "train-000000.tar", [*pairs(["v.1", "v.2"]), ("v.3.mp4", b"")])
    with pytest.raises(DataError, match=r"sample v\.3 has no \.cls or \.json"):
        read_dataset("webdataset", tmp_path, "train")


def test_members_that_are_no_part_of_a_sample_are_named_and_a_tenth_of_them_refused(tmp_path, videos):
    video = videos["vp9"].read_bytes()
    samples = [pair for n in range(10) for pair in ((f"v.{n}.webm", video), (f"v.{n}.cls", b"%d" % (n % 2)))]
    extra = [("README.md", b"x"), ("index.json", b"{}"), ("._v.1.webm", b"x"), ("v.1.jpg", b"x"), (".DS_Store", b"x")]
    write_tar(tmp_path / "val-000000.tar", [("a.webm", videos["vp9_other"].read_bytes()), ("a.cls", b"0")])
    write_tar(tmp_path / "train-000000.tar", samples + extra)
    index = load_or_build_index("webdataset", tmp_path, "train")
    assert len(index.healthy) == 10
    shard = "members of train-000000.tar that are"
    assert index.notes == (f"passed over: {shard} no part of a sample: 2, README.md, index.json",)
    write_tar(tmp_path / "train-000000.tar", [*samples, ("v.11.r3d", b"x"), ("clip12", b"x")])
    with pytest.raises(
        DataError, match=r"neither videos nor part of a sample: 2 of 12, v\.11\.r3d, clip12; .*--accept"
    ):
        load_or_build_index("webdataset", tmp_path, "train")
    index = load_or_build_index("webdataset", tmp_path, "train", accept_gaps=True)
    assert "2, v.11.r3d, clip12" in "\n".join(index.summary())


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program here")
def test_links_in_a_tar_are_what_they_link_to(tmp_path, videos):
    source = tmp_path / "source"
    (source / "store").mkdir(parents=True)
    (source / "s").mkdir()
    shutil.copy(videos["vp9"], source / "store" / "one.webm")
    (source / "store" / "one.cls").write_text("1")
    (source / "s" / "hard.webm").hardlink_to(source / "store" / "one.webm")
    (source / "s" / "soft.webm").symlink_to("../store/one.webm")
    (source / "s" / "soft2.webm").symlink_to("/annexed/away.webm")
    for name in ("hard", "soft"):
        (source / "s" / f"{name}.cls").write_text("0")
    subprocess.run(["tar", "-cf", tmp_path / "train-000000.tar", "-C", source, "./store", "./s"], check=True)
    found = read_shard(tmp_path / "train-000000.tar", tmp_path)
    assert {sample.key: sample.label for sample in found.samples} == {
        "./store/one": "1",
        "./s/hard": "0",
        "./s/soft": "0",
    }
    for sample in found.samples:
        assert read_member(sample.path(str(tmp_path / "train-000000.tar"))) == videos["vp9"].read_bytes()
    assert found.lost == ["./s/soft2.webm (a link to nothing in the tar)"]


def test_shards_that_no_split_takes_are_named_and_compressed_ones_refused(tmp_path, videos):
    video = videos["vp9"].read_bytes()
    (tmp_path / "train" / "part1").mkdir(parents=True)
    (tmp_path / "train" / "PART2").mkdir()
    write_tar(tmp_path / "train" / "part1" / "a.tar", [("1.webm", video), ("1.cls", b"0")])
    write_tar(tmp_path / "train" / "PART2" / "A.TAR", [("2.webm", video), ("2.cls", b"1")])
    write_tar(tmp_path / "extra.tar", [("3.webm", video), ("3.cls", b"1")])
    index = load_or_build_index("webdataset", tmp_path, "train")
    assert sorted(row.id for row in index.rows) == ["1", "2"]
    assert len(index.healthy) == 2
    assert index.notes == ("passed over: shards of no split: 1, extra.tar",)
    (tmp_path / "train" / "part1" / "b.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(
        DataError, match=r"compressed shards of the train split \(unpack them to \.tar\): 1, train/part1/b"
    ):
        load_or_build_index("webdataset", tmp_path, "train")
