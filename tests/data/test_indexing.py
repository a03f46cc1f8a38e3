"""The index: scanned once, kept beside the data, honest about what is broken."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from dataclasses import fields

import numpy as np
import pytest

from aim_fast.data import Clip, Row, load_or_build_index
from aim_fast.data.index import index_file, indexing
from aim_fast.data.index.index_file import index_paths, read_index, stored_indices, write_index
from aim_fast.data.video.probe import Probe, probe
from aim_fast.errors import DataError


def finished(dataset, root):
    """The finished index of the training split as last written; None where there is none."""
    return next((index for index, complete in stored_indices(dataset, root, "train") if complete), None)


@pytest.fixture
def scans(monkeypatch) -> list[list[str]]:
    """Which paths each scan took."""
    taken: list[list[str]] = []
    real = indexing.scan

    def counting(paths, **options):
        taken.append(list(paths))
        return real(paths, **options)

    monkeypatch.setattr(indexing, "scan", counting)
    return taken


@pytest.fixture
def root(class_folders, videos, broken):
    """Ten clips: seven healthy of six codecs and sizes, two broken, one listed later as missing."""
    files = [videos[kind] for kind in ("vp9", "vp9_other", "h264", "mpeg4")]
    return class_folders({"train/a": [*files, broken["truncated"]], "train/b": [videos["vp8"], broken["text"]]})


def test_rows_hold_what_probing_finds_and_broken_files_are_named(root):
    index = load_or_build_index("folder", root, "train", workers=2)
    assert [row.label for row in index.rows] == [0] * 5 + [1] * 2
    for row in index.rows:
        found = probe(row.path)
        for name in ("frames", "height", "width", "codec", "pixel_format", "rotation", "size", "mtime_ns", "error"):
            assert getattr(row, name) == getattr(found, name)
    assert index.healthy.tolist() == [0, 1, 2, 3, 5]
    assert [row.id for row in index.broken] == ["a/04.webm", "b/01.webm"]
    assert index.missing == []
    text = "\n".join(index.summary())
    assert "5 of 7 clips can be used" in text
    assert "broken: 2 files" in text
    for row in index.broken:
        assert f"{row.path}: {row.error}" in text


def test_missing_videos_are_named_and_counted(ssv2, videos):
    root = ssv2([videos["vp9"]] * 4)
    gone = root / "20bn-something-something-v2" / "1002.webm"
    gone.unlink()
    index = load_or_build_index("ssv2", root, "train")
    assert [row.id for row in index.missing] == ["1002"]
    assert len(index) == 4
    assert "missing: 1 file" in "\n".join(index.summary())
    assert str(gone) in "\n".join(index.summary())


def test_a_second_run_scans_nothing_and_gives_the_same(root, scans):
    first = load_or_build_index("folder", root, "train")
    assert load_or_build_index("folder", root, "train") == first
    assert len(scans) == 1
    assert finished("folder", root) == first


def test_only_changed_and_new_files_are_scanned_again(root, videos, scans):
    load_or_build_index("folder", root, "train")
    changed, new, touched = root / "train/a/04.webm", root / "train/b/02.webm", root / "train/a/00.webm"
    shutil.copy(videos["vp9"], changed)
    shutil.copy(videos["vp9"], new)
    os.utime(touched, ns=(1, 1))
    (root / "train/a/01.webm").unlink()
    index = load_or_build_index("folder", root, "train")
    assert sorted(scans[1]) == sorted(map(str, (changed, new, touched)))
    assert [row.id for row in index.broken] == ["b/01.webm"]
    assert len(index) == 7
    load_or_build_index("folder", root, "train", rebuild=True)
    assert len(scans[2]) == 7


def test_a_missing_file_that_came_back_is_scanned(ssv2, videos, scans):
    root = ssv2([videos["vp9"]] * 3)
    gone = root / "20bn-something-something-v2" / "1001.webm"
    gone.unlink()
    load_or_build_index("ssv2", root, "train")
    shutil.copy(videos["vp9"], gone)
    assert load_or_build_index("ssv2", root, "train").missing == []
    assert scans[1] == [str(gone)]


def test_changed_labels_are_taken_over_without_a_scan(ssv2, videos, scans):
    root = ssv2([videos["vp9"]] * 3)
    before = load_or_build_index("ssv2", root, "train")
    entries = json.loads((root / "train.json").read_text())
    entries[0]["template"] = "Dropping [something]"
    (root / "train.json").write_text(json.dumps(entries))
    after = load_or_build_index("ssv2", root, "train")
    assert (before.rows[0].label, after.rows[0].label) == (0, 1)
    assert finished("ssv2", root) == after
    assert len(scans) == 1


def test_an_interrupted_scan_goes_on_where_it_stopped(root, scans, monkeypatch):
    real = indexing.scan

    def interrupted(paths, *, done, **options):
        def stopping(position, found):
            done(position, found)
            if position == 3:
                raise KeyboardInterrupt

        return real(paths, done=stopping, **{**options, "workers": 1})

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "scan", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_or_build_index("folder", root, "train")
    assert finished("folder", root) is None
    index = load_or_build_index("folder", root, "train")
    assert len(scans[-1]) == 3
    assert len(index.healthy) == 5


def test_data_moved_elsewhere_keep_their_index(root, scans):
    load_or_build_index("folder", root, "train")
    moved = root.parent / "moved"
    root.rename(moved)
    index = load_or_build_index("folder", moved, "train")
    assert len(scans) == 1
    assert all(row.path.startswith(str(moved)) for row in index.rows)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 half an archive"])
def test_an_unreadable_index_says_which_and_what_to_do(root, content):
    load_or_build_index("folder", root, "train")
    path = index_paths("folder", root, "train")[0]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read .*delete it, or .*--rebuild") as error:
        load_or_build_index("folder", root, "train")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(load_or_build_index("folder", root, "train", rebuild=True).healthy) == 5


def test_every_truncation_of_an_index_is_refused(root):
    load_or_build_index("folder", root, "train")
    path = index_paths("folder", root, "train")[0]
    whole = path.read_bytes()
    for size in range(1, len(whole), max(1, len(whole) // 25)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="cannot be read"):
            read_index(path, root)


def test_data_that_cannot_be_written_are_indexed_in_the_cache(root, scans):
    (root / ".aim-fast").write_text("a file, where the index would make a folder")
    index = load_or_build_index("folder", root, "train")
    beside, cached = index_paths("folder", root, "train")
    assert not beside.exists()
    assert cached.is_file()
    assert load_or_build_index("folder", root, "train") == index == finished("folder", root)
    assert len(scans) == 1


def test_an_old_index_beside_data_that_became_read_only_yields_to_the_one_in_the_cache(
    root, videos, scans, monkeypatch
):
    load_or_build_index("folder", root, "train")
    beside, cached = index_paths("folder", root, "train")
    real = index_file.replacing

    def read_only(path):
        if path.parent == beside.parent:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path)

    monkeypatch.setattr(index_file, "replacing", read_only)
    shutil.copy(videos["vp9_gop"], root / "train" / "a" / "00.webm")
    index = load_or_build_index("folder", root, "train")
    assert cached.is_file()
    assert load_or_build_index("folder", root, "train") == index == finished("folder", root)
    assert [len(paths) for paths in scans] == [7, 1]


def test_nowhere_to_write_is_an_error_that_names_both_places(root, tmp_path, monkeypatch):
    (root / ".aim-fast").write_text("")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be written to .*\.aim-fast.* or .*XDG_CACHE_HOME"):
        load_or_build_index("folder", root, "train")


def test_a_set_without_one_usable_clip_is_an_error(class_folders, broken):
    root = class_folders({"train/a": [broken["text"], broken["empty"]]})
    with pytest.raises(DataError, match=r"none of the 2 train clips .*0 missing, 2 broken.*00\.webm"):
        load_or_build_index("folder", root, "train")
    assert not list(root.rglob("*.npz"))


def test_names_of_any_bytes_survive(class_folders, videos):
    root = class_folders({"train/a": [videos["vp9"]]})
    odd = root / "train" / "a" / os.fsdecode(b"caf\xe9 \xe2\x82\xac.webm")
    shutil.copy(videos["vp9"], odd)
    index = load_or_build_index("folder", root, "train")
    assert index.rows[1].path == str(odd)
    assert index.rows[1].healthy
    assert finished("folder", root) == index


def test_a_large_index_is_read_back_exactly(root, tmp_path):
    from dataclasses import replace

    index = load_or_build_index("folder", root, "train")
    random = np.random.default_rng(0)
    rows = [
        replace(
            index.rows[0], path=str(root / f"{i}.webm"), id=str(i), frames=int(random.integers(1, 10**6)), label=i % 174
        )
        for i in range(20_000)
    ]
    rows[7] = replace(rows[7], error="is empty", codec="", size=-1)
    large = replace(index, rows=rows)
    write_index(large, root, complete=True)
    assert finished("folder", root) == large


def test_an_index_of_which_any_bit_flipped_is_read_or_refused(root):
    """Bytes that break the decompressor itself, before any checksum is looked at."""
    load_or_build_index("folder", root, "train")
    path = index_paths("folder", root, "train")[0]
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[int(generator.integers(len(whole)))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            read_index(path, root)


def test_a_row_is_its_clip_and_its_probe_field_by_field():
    names = [field.name for kind in (Clip, Probe) for field in fields(kind)]
    assert sorted(names) == sorted(field.name for field in fields(Row))
    clip, found = (
        Clip("a.mp4", 3, "a", others=(5,)),
        Probe(**{field.name: f"its {field.name}" for field in fields(Probe)}),
    )
    row = Row.of(clip, found)
    assert row.probe == found
    assert Row.of(Row.of(clip, Probe()), found) == row
    assert [getattr(row, name) for name in names] == ["a.mp4", 3, "a", (5,), *(f"its {name}" for name in names[4:])]
