"""Two splits that share a video, however it is named: by path, as a copy, as a link, or in other shards."""

import json
import os
import shutil

import pytest

from aim_fast.data.copies.shard import write_shards
from aim_fast.data.index.indexing import load_or_build_index
from aim_fast.data.index.splits import same_classes
from aim_fast.errors import DataError


def test_splits_that_share_videos_are_refused_by_name(official):
    root = official("diving48")
    train = json.loads((root / "Diving48_V2_train.json").read_text())
    test = json.loads((root / "Diving48_V2_test.json").read_text())
    (root / "Diving48_V2_test.json").write_text(json.dumps([*test, train[2]]))
    with pytest.raises(DataError, match=r"1 of 3 validation videos are in train as well: bXFQo-QPK9A_00002; remove"):
        same_classes("diving48", root)


@pytest.mark.parametrize("how", ["copied", "linked"])
def test_a_video_that_is_in_both_splits_under_two_paths_is_named(class_folders, videos, how):
    root = class_folders({"train/a": [videos["vp9"]], "val/a": [videos["vp9_other"], videos["vp9_gop"]]})
    (root / "train" / "a" / "00.webm").rename(root / "train" / "a" / "dive.webm")
    assert same_classes("folder", root) == ["a"]
    shared, other = root / "train" / "a" / "dive.webm", root / "val" / "a" / "dive.webm"
    if how == "copied":
        shutil.copy(shared, other)
    else:
        os.symlink(shared, other)
    with pytest.raises(DataError, match=r"1 of 3 validation videos are in train as well: a/dive\.webm; remove"):
        same_classes("folder", root)


def test_equal_names_of_different_videos_are_no_overlap(class_folders, videos):
    root = class_folders({"train/a": [videos["vp9"]] * 2, "val/a": [videos["vp9_other"]]})
    assert same_classes("folder", root) == ["a"]
    whole = (root / "train" / "a" / "00.webm").read_bytes()
    (root / "val" / "a" / "00.webm").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of one size as well
    assert same_classes("folder", root) == ["a"]


def test_a_video_in_shards_of_both_splits_is_named(class_folders, videos, tmp_path):
    root = class_folders({"train/a": [videos["vp9"], videos["h264"]], "val/a": [videos["vp9_other"]]})
    (root / "val" / "a" / "00.webm").rename(root / "val" / "a" / "dive.webm")
    shutil.copy(videos["vp9"], root / "val" / "a" / "00.webm")
    indices = [load_or_build_index("folder", root, split) for split in ("train", "validation")]
    write_shards(indices, tmp_path / "shards")
    with pytest.raises(DataError, match=r"1 of 2 validation videos are in train as well: a/00\.webm; remove"):
        same_classes("webdataset", tmp_path / "shards")
