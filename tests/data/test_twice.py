"""A video twice in a split counts once and is named; under two labels it is refused by both places; in every format."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile

import pytest

from aim_fast.data.formats import read_dataset
from aim_fast.data.index.indexing import load_or_build_index
from aim_fast.errors import DataError


@pytest.mark.parametrize("again", ["a.mp4", "./a.mp4", "sub/../a.mp4", ".//a.mp4", "{root}/a.mp4"])
def test_a_path_in_two_spellings_is_one_video(tmp_path, again):
    again = again.format(root=tmp_path)
    (tmp_path / "train.txt").write_text(f"a.mp4 0\nb.mp4 1\n{again} 0\n")
    listing = read_dataset("list", tmp_path, "train")
    assert [clip.id for clip in listing.clips] == ["a.mp4", "b.mp4"]
    assert "counted once: 1 of 3 entries" in listing.notes[0]
    assert "(train.txt line 1 and train.txt line 3)" in listing.notes[0]
    (tmp_path / "train.txt").write_text(f"a.mp4 0\nb.mp4 1\n{again} 1\n")
    with pytest.raises(
        DataError, match=r"train: 1 video has two labels, .*line 1 and train\.txt line 3: '0' and '1'\)"
    ):
        read_dataset("list", tmp_path, "train")


def test_equal_names_in_two_folders_are_two_videos(tmp_path):
    (tmp_path / "train.txt").write_text("x/a.mp4 0\ny/a.mp4 1\n")
    assert len(read_dataset("list", tmp_path, "train").clips) == 2


def test_official_csv_json_and_text_name_entries(official, ssv2, videos):
    root = official("kinetics400")
    text = (root / "train.csv").read_text()
    row = text.splitlines()[2]
    (root / "train.csv").write_text(text + row + "\n")
    listing = read_dataset("kinetics400", root, "train")
    assert (len(listing.clips), "train.csv line 3 and train.csv line 6" in listing.notes[0]) == (4, True)
    (root / "train.csv").write_text(text + row.replace("air drumming", "playing guitar") + "\n")
    with pytest.raises(DataError, match=r"two labels.*train\.csv line 3 and train\.csv line 6"):
        read_dataset("kinetics400", root, "train")

    root = ssv2([videos["vp9"]] * 3)
    entries = json.loads((root / "train.json").read_text())
    (root / "train.json").write_text(
        json.dumps([*entries, entries[1], {**entries[0], "template": "Dropping something"}])
    )
    with pytest.raises(DataError, match=r"two labels, 1000 \(train\.json entry 0 and train\.json entry 4"):
        read_dataset("ssv2", root, "train")
    (root / "train.json").write_text(json.dumps([*entries, entries[1]]))
    assert "train.json entry 1 and train.json entry 3" in read_dataset("ssv2", root, "train").notes[0]


@pytest.mark.parametrize(("name", "file"), [("ucf101", "trainlist01.txt"), ("hmdb51", "wave_test_split1.txt")])
def test_official_lists_name_lines(official, name, file):
    root = official(name)
    place = next(root.rglob(file))
    lines = place.read_text().splitlines()
    place.write_text("\n".join([*lines, lines[1]]) + "\n")
    notes = read_dataset(name, root, "train").notes
    assert f"({file} line 2 and {file} line {len(lines) + 1})" in notes[0]


def test_diving48_and_jester(official):
    root = official("diving48")
    entries = json.loads((root / "Diving48_V2_train.json").read_text())
    (root / "Diving48_V2_train.json").write_text(json.dumps([*entries, {**entries[0], "label": 1}]))
    with pytest.raises(DataError, match=r"two labels.*entry 0 and Diving48_V2_train\.json entry 4"):
        read_dataset("diving48", root, "train")
    root = official("jester")
    file = root / "jester-v1-train.csv"
    file.write_text(file.read_text() + "1;Swiping Left\n")
    assert "line 1 and jester-v1-train.csv line 5" in read_dataset("jester", root, "train").notes[0]


def test_samples_of_one_key_over_shards(tmp_path):
    def write(number, samples):
        with tarfile.open(tmp_path / f"train-{number:06d}.tar", "w") as archive:
            for key, video, label in samples:
                for tail, data in (("mp4", video), ("cls", label)):
                    member = tarfile.TarInfo(f"{key}.{tail}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))

    write(0, [("a", b"first video", b"0"), ("b", b"other video", b"1")])
    write(1, [("a", b"third video", b"1"), ("b", b"other video", b"1")])  # a starts anew, b is there again
    listing = read_dataset("webdataset", tmp_path, "train")
    assert [clip.label for clip in listing.clips] == [0, 1, 1]
    assert "1 of 4 entries, b (train-000000.tar sample b and train-000001.tar sample b)" in listing.notes[0]
    write(1, [("b", b"other video", b"0")])
    with pytest.raises(DataError, match=r"1 video has two labels, b \(train-000000\.tar sample b"):
        read_dataset("webdataset", tmp_path, "train")


def test_what_counts_once_is_said_by_the_index_and_scored_once(aim_fast, videos, tmp_path):
    for name in "abc":
        shutil.copy(videos["vp9"], tmp_path / f"{name}.webm")
    (tmp_path / "train.txt").write_text("a.webm 0\nb.webm 1\n./b.webm 1\n")
    shutil.copy(videos["vp9_other"], tmp_path / "c.webm")
    (tmp_path / "val.txt").write_text("c.webm 1\n")
    status, out, err = aim_fast("index", "--dataset", "list", "--data-root", tmp_path)
    assert status == 0, err
    assert "list train: 2 of 2 clips can be used" in out
    assert "counted once: 1 of 3 entries, ./b.webm (train.txt line 2 and train.txt line 3)" in out
    assert len(load_or_build_index("list", tmp_path, "train").healthy) == 2


def test_a_link_that_comes_before_its_file_is_the_one_that_is_named(class_folders, videos):
    root = class_folders({"train/a": [videos["vp9"]], "train/b": [videos["h264"]]})
    os.symlink(root / "train" / "b", root / "train" / "a" / "loop")
    with pytest.raises(
        DataError, match=r"a/loop/00\.mp4 is a link to .*train/b/00\.mp4, of another class \('b' and 'a'\)"
    ):
        load_or_build_index("folder", root, "train")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_to_one_file_count_once_and_are_of_one_class(aim_fast, class_folders, videos, link):
    root = class_folders({"train/a": [videos["vp9"]], "train/b": [videos["h264"]], "val/a": [videos["vp9_other"]]})
    link(root / "train" / "a" / "00.webm", root / "train" / "a" / "again.webm")
    index = load_or_build_index("folder", root, "train")
    assert [row.id for row in index.rows] == ["a/00.webm", "b/00.mp4"]
    assert "links to one file, counted once: 1 of 3 entries" in index.notes[0]
    assert "again.webm" in index.notes[0]
    assert index.rows == load_or_build_index("folder", root, "train").rows
    assert "links to one file" in aim_fast("index", "--dataset", "folder", "--data-root", root)[1]
    link(root / "train" / "a" / "00.webm", root / "train" / "b" / "other.webm")
    with pytest.raises(DataError, match=r"b/other\.webm is a link to .*a/00\.webm, of another class \('a' and 'b'\)"):
        load_or_build_index("folder", root, "train")


def test_copies_under_one_name_are_named(class_folders, videos):
    root = class_folders({"train/a": [videos["vp9"]], "train/b": [videos["vp9"]], "train/c": [videos["h264"]]})
    index = load_or_build_index("folder", root, "train")
    assert len(index) == 3
    assert "copies of one video under one name: 1 of 3" in index.notes[0]
    assert "in two classes" in index.notes[0]
    shutil.copy(videos["vp9_other"], root / "train" / "b" / "00.webm")
    assert load_or_build_index("folder", root, "train").notes == ()
