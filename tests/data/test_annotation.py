"""Annotation files with what editors, downloads and other columns put into them."""

import json

import pytest

from aim_fast.data.formats import read_dataset
from aim_fast.data.formats.annotation import class_number, read_json, read_lines, read_table
from aim_fast.errors import DataError


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_of_any_ends_with_or_without_a_mark(tmp_path, ends, mark):
    file = tmp_path / "a.txt"
    file.write_bytes((mark + ends.join(["één", "", "b\u2028c d\x85", ""])).encode())
    assert read_lines(file) == ["één", "", "b\u2028c d\x85"]
    file.write_bytes(b"")
    assert read_lines(file) == []


def test_zero_bytes_are_told_with_their_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\nb\0\n")
    with pytest.raises(DataError, match=r"a\.txt: line 2 has a zero byte"):
        read_lines(tmp_path / "a.txt")


@pytest.mark.parametrize("content", ["[" * 100_000, "[" + "9" * 5000 + "]"])
def test_json_beyond_what_is_parsed_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json cannot be read as JSON") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_a_quotation_mark_that_is_never_closed_is_told(tmp_path):
    rows = "".join(f"playing guitar,id{number},0,10,train\n" for number in range(6000))
    (tmp_path / "train.csv").write_text('label,youtube_id,time_start,time_end,split\n"' + rows)
    with pytest.raises(DataError, match=r"is not CSV \(field larger.*quotation mark left open"):
        read_table(tmp_path / "train.csv")


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("173", 173), ("", None), ("-1", None), ("1²", None), ("20190314", None)]
)
def test_a_class_number_is_a_whole_number_of_a_class(text, number):
    assert class_number(text) == number
    assert class_number("9" * 5000) is None


@pytest.mark.parametrize("name", ["1\0", "\ud800"])
def test_names_that_no_file_can_have_are_refused(ssv2, videos, name):
    root = ssv2([videos["vp9"], videos["vp9_other"]])
    entries = json.loads((root / "train.json").read_text())
    entries[1]["id"] += name
    (root / "train.json").write_text(json.dumps(entries))
    with pytest.raises(DataError, match=r"train annotations name a clip '1001.*', which no file can be named") as error:
        read_dataset("ssv2", root, "train")
    str(error.value).encode()


def test_blank_lines_in_answers_are_passed_over(ssv2, videos):
    root = ssv2([videos["vp9"]] * 3)
    (root / "test-answers.csv").write_text("1000;Dropping something\r\n\r\n1001;0\r\n\r\n")
    assert [clip.label for clip in read_dataset("ssv2", root, "test").clips] == [1, 0, -1]


@pytest.mark.parametrize("label", ["1²", "--1", "20190314"])
def test_labels_that_look_like_numbers_are_names(tmp_path, label):
    (tmp_path / "train.txt").write_text(f"a.mp4 {label}\nb.mp4 other\n")
    assert read_dataset("list", tmp_path, "train").classes == sorted([label, "other"])


def test_what_is_there_is_said_where_a_layout_is_nearly_right(class_folders, videos, ssv2, tmp_path):
    root = class_folders({"train/a": [videos["vp9"]], "testing/a": [videos["vp9"]]})
    with pytest.raises(DataError, match=r"no val or validation or valid folder.*found: testing/, train/"):
        read_dataset("folder", root, "validation")
    (root / "train").rename(root / "Train")
    with pytest.raises(DataError, match=r"no class folder with videos.*found: Train/, testing/"):
        read_dataset("folder", root, "train")
    with pytest.raises(DataError, match=r"looked for train\.txt.*found: Train/, testing/"):
        read_dataset("list", root, "train")
    root = ssv2([videos["vp9"]])
    (root / "labels.json").rename(root / "label.json")
    with pytest.raises(DataError, match=r"labels\.json .*found: 20bn-something-something-v2/, label\.json"):
        read_dataset("ssv2", root, "train")


def test_what_macos_packs_beside_videos_is_no_video(class_folders, videos):
    root = class_folders({"train/a": [videos["vp9"]]})
    (root / "train" / "a" / "._00.webm").write_bytes(b"\0\5\x16\7" * 20)
    (root / "train" / "b").mkdir()
    (root / "train" / "b" / "._00.webm").write_bytes(b"\0\5\x16\7" * 20)
    listing = read_dataset("folder", root, "train")
    assert (listing.classes, [clip.id for clip in listing.clips]) == (["a"], ["a/00.webm"])


def test_a_heading_that_is_no_heading_of_jester(official):
    root = official("jester", newer=True)
    text = (root / "Train.csv").read_text()
    (root / "Train.csv").write_text(text.replace("video_id,", "video_ids,"))
    with pytest.raises(DataError, match=r"Train\.csv: the heading begins with 'video_ids', not video_id"):
        read_dataset("jester", root, "train")
