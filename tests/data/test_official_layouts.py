"""Published data sets in miniature, in their official layouts and in those that are nearly right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aim_fast.data.formats import DATASETS, UNLABELLED, dataset_layout, read_dataset
from aim_fast.data.formats.annotation import files_read
from aim_fast.data.index.indexing import load_or_build_index
from aim_fast.data.index.splits import same_classes
from aim_fast.errors import DataError, UsageError


def labels(listing) -> list[int]:
    return [clip.label for clip in listing.clips]


def on_disk(listing) -> bool:
    return all(Path(clip.path).is_file() for clip in listing.clips)


def remove(path: str) -> None:
    shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


@pytest.mark.parametrize("folders", ["spaces", "underscores", "flat"])
@pytest.mark.parametrize("csv", ["{}.csv", "annotations/{}.csv", "annotations/kinetics-400_{}.csv"])
def test_kinetics_in_class_folders_of_either_naming_and_flat(official, folders, csv):
    root = official("kinetics400", folders=folders, csv=csv)
    train, validation = (read_dataset("kinetics400", root, split) for split in ("train", "validation"))
    assert train.classes == validation.classes == ["air drumming", "playing guitar"]
    assert (labels(train), labels(validation)) == ([1, 0, 1, 0], [1, 0])
    assert train.clips[1].id == "-train_x000_000006_000016"
    assert on_disk(train)
    assert on_disk(validation)
    assert same_classes("kinetics400", root) == train.classes


def test_kinetics_takes_other_containers_short_names_and_names_what_is_missing(official):
    root = official("kinetics700", folders="underscores")
    folder = root / "train" / "playing_guitar"
    first, second = sorted(folder.iterdir())
    first.rename(first.with_suffix(".webm"))
    second.rename(folder / "-train_x000_7_17.mkv")
    gone = next((root / "train" / "air_drumming").iterdir())
    gone.unlink()
    listing = read_dataset("kinetics700", root, "train")
    assert [Path(clip.path).suffix for clip in listing.clips[::2]] == [".webm", ".mkv"]
    assert str(gone) in [clip.path for clip in listing.clips]
    assert len(listing.clips) == 4


def test_kinetics_prefers_the_folder_of_the_class_where_a_name_is_there_twice(official):
    root = official("kinetics400")
    clip = read_dataset("kinetics400", root, "train").clips[0]
    (root / "train" / "abseiling").mkdir()
    shutil.copy(clip.path, root / "train" / "abseiling")
    assert read_dataset("kinetics400", root, "train").clips[0].path == clip.path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "playing guitar,abc,5,15,train\n",
            r"heading has no label, youtube_id.*found playing guitar",
        ),
        ("label,youtube_id,time_start,time_end,split\na,abc,5,,train\n", r"line 2 has no whole time_start"),
        ("label,youtube_id,time_start,time_end,split\na,,5,15,train\n", r"line 2 has no youtube_id"),
        ("label,youtube_id,time_start,time_end,split\na,nowhere,5,15,train\n", r"none of the 1 videos .*found: train/"),
        ("label,youtube_id,time_start,time_end,split\n", r"no train clips found"),
        ("", r"found an empty file"),
    ],
)
def test_kinetics_files_that_are_nearly_right(official, content, said):
    root = official("kinetics400")
    (root / "train.csv").write_text(content)
    with pytest.raises(DataError, match=said) as error:
        read_dataset("kinetics400", root, "train")
    assert "\n" not in str(error.value)


def test_kinetics_without_its_csv_says_what_is_there_and_what_would_read_it(official):
    root = official("kinetics400")
    (root / "val.csv").unlink()
    with pytest.raises(DataError, match=r"no CSV file of the validation split.*--dataset folder.*found: train/"):
        read_dataset("kinetics400", root, "validation")


def test_kinetics_of_another_release_is_told_from_its_classes(official):
    root = official("kinetics400")
    rows = [f"class {number},abc,0,10,train" for number in range(650)]
    (root / "train.csv").write_text("label,youtube_id,time_start,time_end,split\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"has 650 classes, Kinetics-400 has 400; give --dataset kinetics700"):
        read_dataset("kinetics400", root, "train")


def test_kinetics_refuses_a_validation_class_that_train_has_not(official):
    root = official("kinetics400")
    (root / "val.csv").write_text((root / "val.csv").read_text().replace("air drumming", "welding"))
    with pytest.raises(DataError, match=r"val\.csv: line 3 has label 'welding', which .*train\.csv has not"):
        read_dataset("kinetics400", root, "validation")


@pytest.mark.parametrize(("prefix", "folder"), [("Diving48_V2_", "rgb"), ("", "videos"), ("Diving48_V2_", ".")])
def test_diving48(official, prefix, folder):
    root = official("diving48", prefix=prefix, folder=folder)
    train = read_dataset("diving48", root, "train")
    assert train.classes == ["Back 15som 05Twis FREE", "Forward 25som PIKE"]
    assert labels(train) == [0, 1, 0, 1]
    assert on_disk(train)
    for split in ("validation", "test"):
        assert [clip.id for clip in read_dataset("diving48", root, split).clips] == [
            "bXFQo-QPK9A_00004",
            "bXFQo-QPK9A_00005",
        ]
    assert same_classes("diving48", root) == train.classes


def test_diving48_prefers_version_2_where_both_are_there(official):
    root = official("diving48")
    (root / "Diving48_train.json").write_text("[]")
    assert len(read_dataset("diving48", root, "train").clips) == 4


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("Diving48_V2_train.json", [{"vid_name": "a", "label": 2}], r"entry 0 \(a\) has label 2, none of the 2"),
        ("Diving48_V2_train.json", [{"vid_name": "a"}], r"has label None"),
        ("Diving48_V2_train.json", [{"name": "a"}], r"no object with a vid_name"),
        ("Diving48_V2_train.json", {}, r"no list of entries"),
        ("Diving48_V2_train.json", [{"vid_name": "a", "label": 1}], r"none of the 1 videos .*found: Diving48_V2"),
        ("Diving48_vocab.json", {}, r"no list of dives"),
    ],
)
def test_diving48_files_that_are_nearly_right(official, file, content, said):
    root = official("diving48")
    (root / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match=said):
        read_dataset("diving48", root, "train")


def test_diving48_without_its_vocabulary(official):
    root = official("diving48")
    (root / "Diving48_vocab.json").unlink()
    with pytest.raises(DataError, match=r"Diving48_V2_vocab\.json not found .*found: Diving48_V2_test\.json"):
        read_dataset("diving48", root, "train")


@pytest.mark.parametrize("lists", ["ucfTrainTestlist", ".", "annotations"])
@pytest.mark.parametrize("folder", ["UCF-101", "videos", "."])
def test_ucf101(official, lists, folder):
    root = official("ucf101", lists=lists, folder=folder)
    train, test = (read_dataset("ucf101", root, split) for split in ("train", "validation"))
    assert train.classes == ["HandstandPushups", "JumpRope"]
    assert (labels(train), labels(test)) == ([0, 0, 1, 1], [0, 1])
    assert on_disk(train)
    assert on_disk(test)
    assert test == read_dataset("ucf101", root, "test")


@pytest.mark.parametrize("name", ["ucf101", "hmdb51"])
def test_the_three_splits_hold_out_different_videos(official, name):
    root = official(name)
    held_out = [
        {clip.id for clip in read_dataset(name + tail, root, "validation").clips} for tail in ("", "-split2", "-split3")
    ]
    assert len(set.union(*held_out)) == sum(map(len, held_out)) == 6
    for tail in ("", "-split2", "-split3"):
        assert len(same_classes(name + tail, root)) == 2


def test_ucf101_takes_converted_videos(official):
    root = official("ucf101")
    for file in (root / "UCF-101").rglob("*.avi"):
        file.rename(file.with_suffix(".webm"))
    listing = read_dataset("ucf101", root, "train")
    assert on_disk(listing)
    assert listing.clips[0].path.endswith(".webm")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("trainlist01.txt", "Juggling/v_x.avi 1\n", r"line 1 is not '<class>/<video>' with a class of classInd"),
        ("trainlist01.txt", "v_x.avi 1\n", r"line 1 is not"),
        ("trainlist01.txt", "JumpRope/v_none.avi 1\n", r"none of the 1 videos .*found: UCF-101/"),
        ("classInd.txt", "HandstandPushups\n", r"line 1 is not 'number class'"),
        ("classInd.txt", "2 HandstandPushups\n", r"not 1 to 1"),
    ],
)
def test_ucf101_files_that_are_nearly_right(official, file, content, said):
    root = official("ucf101")
    (root / "ucfTrainTestlist" / file).write_text(content)
    with pytest.raises(DataError, match=said):
        read_dataset("ucf101", root, "train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_ucf101_refuses_a_number_that_is_not_the_folders(official, split):
    root = official("ucf101")
    file = root / "ucfTrainTestlist" / f"{split}list01.txt"
    videos = [line.split(" ")[0] for line in file.read_text().splitlines()]
    numbers = [1 + (video.partition("/")[0] == "JumpRope") for video in videos]
    file.write_text("".join(f"{video} {number}\n" for video, number in zip(videos, numbers)))
    assert len(read_dataset("ucf101", root, split).clips) == len(videos)
    file.write_text("".join(f"{video} {3 - numbers[1] if i == 1 else numbers[i]}\n" for i, video in enumerate(videos)))
    with pytest.raises(DataError, match=rf"{file.name}: line 2 has number \d, but \w+ is \d in classInd"):
        read_dataset("ucf101", root, split)


@pytest.mark.parametrize("lists", ["testTrainMulti_7030_splits", "splits", "."])
@pytest.mark.parametrize("folder", ["hmdb51_org", "."])
def test_hmdb51_with_names_of_odd_characters(official, lists, folder):
    root = official("hmdb51", lists=lists, folder=folder)
    train, test = (read_dataset("hmdb51", root, split) for split in ("train", "validation"))
    assert train.classes == ["brush_hair", "wave"]
    assert (labels(train), labels(test)) == ([0, 0, 1, 1], [0, 1])
    assert on_disk(train)
    assert on_disk(test)


def test_hmdb51_says_which_line_is_wrong_and_that_archives_want_unpacking(official):
    root = official("hmdb51")
    lists = root / "testTrainMulti_7030_splits"
    (lists / "wave_test_split1.txt").write_text("a.avi\n")
    with pytest.raises(DataError, match=r"wave_test_split1\.txt: line 1 is not '<video> flag'"):
        read_dataset("hmdb51", root, "train")
    shutil.rmtree(lists)
    (root / "test_train_splits.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match=r"no \*_test_split1\.txt .*unpack the \.rar files first.*found: brush_hair/"):
        read_dataset("hmdb51", root, "train")


@pytest.mark.parametrize(("name", "options"), [("ssv1", {}), ("jester", {}), ("jester", {"newer": True})])
def test_folders_of_pictures_with_both_kinds_of_lists(official, name, options):
    root = official(name, **options)
    train, validation, test = (read_dataset(name, root, split) for split in ("train", "validation", "test"))
    assert len(train.classes) == 2
    assert train.classes[0] in ("Swiping Left", "Holding something next to something")
    assert (labels(train), labels(validation), labels(test)) == ([0, 1, 0, 1], [0, 1], [UNLABELLED])
    assert all(Path(clip.path, "00012.jpg").is_file() for clip in train.clips)
    assert same_classes(name, root) == train.classes


def test_jester_as_video_files(official, videos):
    root = official("jester")
    for number, kind in ((1, "vp9"), (2, "h264")):
        shutil.rmtree(root / "20bn-jester-v1" / str(number))
        shutil.copy(videos[kind], root / "20bn-jester-v1" / f"{number}{videos[kind].suffix}")
    index = load_or_build_index("jester", root, "train")
    assert [row.codec for row in index.rows] == ["vp9", "h264", "pictures", "pictures"]
    assert [row.frames for row in index.rows] == [30, 60, 12, 12]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train", "1;Juggling\n", r"line 1 has label 'Juggling', which is not in .*labels\.csv"),
        ("train", "1\n", r"line 1 is not 'id;label'"),
        ("train", "99;Swiping Left\n", r"none of the 1 videos .*found: 20bn-jester-v1/"),
        ("labels", "Swiping Left\nSwiping Left\n", r"has a class twice"),
    ],
)
def test_jester_files_that_are_nearly_right(official, file, content, said):
    root = official("jester")
    (root / f"jester-v1-{file}.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        read_dataset("jester", root, "train")


def test_every_data_set_says_its_layout_and_where_it_comes_from(aim_fast):
    status, out, _ = aim_fast("datasets", "--json")
    assert status == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert tuple(rows) == DATASETS
    for name in DATASETS:
        assert rows[name]["layout"] == dataset_layout(name).text
        assert rows[name]["source"] == dataset_layout(name).source
    text = aim_fast("datasets")[1]
    assert "ucf101, ucf101-split2, ucf101-split3" in text
    assert "classInd.txt" in text


def test_a_name_that_is_nearly_right(tmp_path):
    for wrong, right in (("k400", "kinetics400"), ("ucf-101", "ucf101"), ("diving-48", "diving48")):
        with pytest.raises(UsageError, match=f"did you mean '{right}'"):
            read_dataset(wrong, tmp_path, "train")


@pytest.mark.parametrize("name", ["kinetics400", "diving48", "ucf101-split2", "hmdb51", "jester"])
def test_the_index_command_takes_each_and_counts_what_is_missing(aim_fast, official, name):
    root = official(name)
    gone = read_dataset(name, root, "train").clips[0].path
    remove(gone)
    status, out, err = aim_fast("index", "--dataset", name, "--data-root", root)
    assert status == 0, err
    assert f"{name} train: 3 of 4 clips can be used, 2 classes" in out
    assert f"{name} validation: 2 of 2 clips can be used, 2 classes" in out
    assert gone in err
    for clip in read_dataset(name, root, "validation").clips:
        if clip.label == 0:
            remove(clip.path)
    out = aim_fast("index", "--dataset", name, "--data-root", root)[1]
    assert "classes without a clip: 1 of 2" in out


def test_annotation_files_are_known_by_being_read(official):
    root = official("ucf101")
    with files_read() as files:
        read_dataset("ucf101-split2", root, "train")
    assert [file.name for file in files] == ["classInd.txt", "trainlist02.txt"]
