"""Annotation formats: every layout that users have, and each way in which it can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aim_fast.data.formats import UNLABELLED, read_dataset
from aim_fast.errors import AimFastError, DataError, UsageError


def one_line(error: pytest.ExceptionInfo[AimFastError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
@pytest.mark.parametrize("annotations", [".", "labels", "annotations"])
def test_ssv2_finds_both_naming_schemes_at_the_root_and_in_a_subfolder(ssv2, videos, prefix, annotations):
    root = ssv2([videos["vp9"]] * 3, prefix=prefix, annotations=annotations)
    listing = read_dataset("ssv2", root, "train")
    assert listing.classes == ["Pushing something from left to right", "Dropping something"]
    assert [(clip.id, clip.label) for clip in listing.clips] == [("1000", 0), ("1001", 1), ("1002", 0)]
    assert all(Path(clip.path).is_file() for clip in listing.clips)


@pytest.mark.parametrize("folder", ["20bn-something-something-v2", "videos", "."])
@pytest.mark.parametrize("kind", ["vp9", "h264"])
def test_ssv2_finds_webm_and_mp4_in_any_subfolder(ssv2, videos, folder, kind):
    root = ssv2([videos[kind]] * 2, videos=folder)
    clips = read_dataset("ssv2", root, "train").clips
    assert [Path(clip.path).name for clip in clips] == [f"{n}{videos[kind].suffix}" for n in (1000, 1001)]


def test_ssv2_root_may_be_the_folder_of_videos_with_annotations_beside_it(ssv2, videos):
    root = ssv2([videos["vp9"]] * 2)
    inner = root / "20bn-something-something-v2"
    assert [c.path for c in read_dataset("ssv2", inner, "train").clips] == [
        str(inner / "1000.webm"),
        str(inner / "1001.webm"),
    ]


def test_ssv2_keeps_missing_videos_in_the_listing(ssv2, videos):
    root = ssv2([videos["vp9"]] * 3)
    (root / "20bn-something-something-v2" / "1001.webm").unlink()
    clips = read_dataset("ssv2", root, "train").clips
    assert len(clips) == 3
    assert clips[1].path.endswith("1001.webm")


def test_ssv2_test_split_is_unlabelled_without_answers_and_labelled_with_them(ssv2, videos):
    root = ssv2([videos["vp9"]] * 3)
    assert [clip.label for clip in read_dataset("ssv2", root, "test").clips] == [UNLABELLED] * 3
    (root / "test-answers.csv").write_text("1000;Dropping something\n1001;Pushing something from left to right\n")
    assert [clip.label for clip in read_dataset("ssv2", root, "test").clips] == [1, 0, UNLABELLED]


def test_ssv2_names_a_template_that_is_not_in_labels_and_never_falls_back_to_the_label(ssv2, videos):
    root = ssv2([videos["vp9"]] * 2)
    entries = json.loads((root / "train.json").read_text())
    entries[1] |= {"template": "Folding [something]", "label": "Dropping something"}
    (root / "train.json").write_text(json.dumps(entries))
    with pytest.raises(DataError) as error:
        read_dataset("ssv2", root, "train")
    message = one_line(error)
    for part in ("Folding [something]", str(root / "train.json"), "entry 1", "1001", "labels.json"):
        assert part in message


def test_ssv2_says_where_its_json_is_malformed(ssv2, videos):
    root = ssv2([videos["vp9"]])
    (root / "train.json").write_text('[\n  {"id": "1000",\n  "template" "x"}]')
    with pytest.raises(DataError, match=r"train\.json is not valid JSON at line 3 column 14"):
        read_dataset("ssv2", root, "train")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train.json", '{"a": 1}', "no list"),
        ("train.json", '["1000"]', "entry 0"),
        ("train.json", '[{"id": "1000", "label": "Dropping something"}]', "no template"),
        ("train.json", "[]", "no train clips"),
        ("train.json", b"\xff\xfe\x00", "not UTF-8"),
        ("labels.json", "[]", "template to class number"),
        ("labels.json", '{"Dropping something": "a"}', "no integer"),
        ("labels.json", '{"Dropping something": "3"}', "not 0 to 0"),
    ],
)
def test_ssv2_refuses_annotations_of_another_shape(ssv2, videos, file, content, said):
    root = ssv2([videos["vp9"]])
    (root / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said) as error:
        read_dataset("ssv2", root, "train")
    one_line(error)


@pytest.mark.parametrize("file", ["labels.json", "train.json"])
def test_ssv2_names_the_annotation_file_that_is_missing(ssv2, videos, file):
    root = ssv2([videos["vp9"]])
    (root / file).unlink()
    with pytest.raises(DataError, match=rf"{file} .*not found in .*20bn-something-something-v2"):
        read_dataset("ssv2", root, "train")


def test_ssv2_with_no_video_at_all_says_where_they_belong(ssv2, videos):
    root = ssv2([videos["vp9"]] * 2)
    for file in (root / "20bn-something-something-v2").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"none of the 2 videos .*1000\.webm.*20bn-something-something-v2/<id>"):
        read_dataset("ssv2", root, "train")


@pytest.mark.parametrize("name", ["ssv2", "folder", "list"])
def test_a_missing_or_empty_root_says_the_expected_layout(name, tmp_path):
    with pytest.raises(DataError, match=r"does not exist; expected"):
        read_dataset(name, tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"is empty; expected") as error:
        read_dataset(name, tmp_path / "empty", "train")
    one_line(error)


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"unknown data set 'ssv' *: did you mean 'ssv2'"):
        read_dataset("ssv", tmp_path, "train")
    with pytest.raises(UsageError, match=r"unknown split 'val': .*'validation'"):
        read_dataset("ssv2", tmp_path, "val")


def test_folder_reads_split_folders_and_numbers_classes_by_train(class_folders, videos):
    one = [videos["vp9"]]
    root = class_folders({"train/walk": one * 2, "train/jump": one, "val/walk": one, "test/jump": one})
    train = read_dataset("folder", root, "train")
    assert train.classes == ["jump", "walk"]
    assert [(clip.label, clip.id) for clip in train.clips] == [
        (0, "jump/00.webm"),
        (1, "walk/00.webm"),
        (1, "walk/01.webm"),
    ]
    assert [clip.label for clip in read_dataset("folder", root, "validation").clips] == [1]
    assert [clip.label for clip in read_dataset("folder", root, "test").clips] == [0]


def test_folder_without_splits_is_divided_the_same_way_every_time(class_folders, videos):
    root = class_folders({"walk": [videos["vp9"]] * 10, "jump": [videos["vp9"]] * 5})
    train, validation = (read_dataset("folder", root, split) for split in ("train", "validation"))
    assert train == read_dataset("folder", root, "train")
    ids = {clip.id for clip in train.clips}, {clip.id for clip in validation.clips}
    assert not ids[0] & ids[1]
    assert [len(part) for part in ids] == [12, 3]
    before = [clip.id for clip in validation.clips if clip.label == 1]
    for extra in range(3):  # another class does not move the files of this one
        (root / "apart").mkdir(exist_ok=True)
        (root / "apart" / f"{extra}.webm").write_bytes(b"")
    after = read_dataset("folder", root, "validation")
    assert [c.id for c in after.clips if after.classes[c.label] == "walk"] == before


def test_folder_refuses_classes_that_train_has_not_and_splits_that_are_not_there(class_folders, videos):
    root = class_folders({"train/walk": [videos["vp9"]], "val/run": [videos["vp9"]]})
    with pytest.raises(DataError, match="classes that train has not: run"):
        read_dataset("folder", root, "validation")
    with pytest.raises(DataError, match="no test folder"):
        read_dataset("folder", root, "test")


@pytest.mark.parametrize("separator", [" ", ",", ", ", "  "])
def test_list_splits_from_the_right_with_spaces_in_paths(tmp_path, separator):
    (tmp_path / "train.txt").write_text(f"a b/c d.mp4{separator}1\n\n/abs/e,f.webm{separator}0\n")
    listing = read_dataset("list", tmp_path, "train")
    assert [(clip.path, clip.label) for clip in listing.clips] == [
        (str(tmp_path / "a b/c d.mp4"), 1),
        ("/abs/e,f.webm", 0),
    ]
    assert listing.classes == ["0", "1"]


def test_list_takes_class_names_with_spaces_numbered_by_the_training_list(tmp_path):
    (tmp_path / "train.txt").write_text("x.mp4 playing guitar\ny.mp4 abseiling\n")
    (tmp_path / "val.txt").write_text("z.mp4,playing guitar\n")
    listing = read_dataset("list", tmp_path / "train.txt", "validation")
    assert listing.classes == ["abseiling", "playing guitar"]
    assert [clip.label for clip in listing.clips] == [1]


def test_list_looks_beside_the_list_and_then_under_the_root(tmp_path):
    (tmp_path / "train.txt").write_text("sub/x.mp4 0\n")
    assert read_dataset("list", tmp_path, "train").clips[0].path == str(tmp_path / "sub/x.mp4")


def test_list_says_which_line_or_label_is_wrong_and_which_file_is_missing(tmp_path):
    (tmp_path / "train.txt").write_text("x.mp4 run\ny.mp4\n")
    with pytest.raises(DataError, match=r"line 2 is not 'path label'"):
        read_dataset("list", tmp_path, "train")
    (tmp_path / "train.txt").write_text("x.mp4 run\n")
    (tmp_path / "val.txt").write_text("x.mp4 jump\n")
    with pytest.raises(DataError, match=r"line 1 has label 'jump'"):
        read_dataset("list", tmp_path, "validation")
    with pytest.raises(DataError, match=r"no list for the test split .*test\.txt"):
        read_dataset("list", tmp_path, "test")
