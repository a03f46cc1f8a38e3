"""What lies under a data root and becomes no clip is counted and named, and refused where it is a class or a tenth."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aim_fast.data import load_or_build_index, read_dataset
from aim_fast.errors import DataError


def put(source: Path, root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, root / name)


@pytest.fixture
def root(tmp_path, videos) -> Path:
    """Class folders of twenty clips for training and four for validation."""
    root = tmp_path / "data"
    put(videos["vp9"], root, *(f"train/{name}/{i:02d}.webm" for name in ("jump", "walk") for i in range(10)))
    put(videos["vp9_other"], root, *(f"val/{name}/{i}.webm" for name in ("jump", "walk") for i in ("a", "b")))
    return root


def notes(root: Path, dataset: str = "folder", split: str = "train", **options) -> str:
    index = load_or_build_index(dataset, root, split, **options)
    text = "\n".join(note for note in index.notes if not note.startswith("copies of one video"))  # these clips are
    assert text in "\n".join(index.summary())
    return text


def refused(root: Path, said: str, dataset: str = "folder", split: str = "train") -> None:
    with pytest.raises(DataError, match=said) as error:
        load_or_build_index(dataset, root, split)
    assert "\n" not in str(error.value)
    assert str(root) in str(error.value)
    assert "--accept-gaps" in str(error.value)


@pytest.mark.parametrize("split_folders", [True, False])
def test_folders_in_class_folders_are_walked_and_the_uppermost_is_the_class(tmp_path, videos, split_folders):
    train = "train/" if split_folders else ""
    files = ["run/anna/day 1/c.webm", "run/bob/c.webm", "run/z.webm", "sit/anna/c.webm", "sit/bob.v2/d.webm"]
    put(videos["vp9"], tmp_path, *(train + file for file in files))
    if split_folders:
        put(videos["vp9_other"], tmp_path, "val/run/eve/1.webm", "val/sit/2.webm")
    train_clips, held_out = (read_dataset("folder", tmp_path, split).clips for split in ("train", "validation"))
    ids = {clip.id: clip.label for clip in [*train_clips, *([] if split_folders else held_out)]}
    assert ids == {file: file.startswith("sit") for file in files}
    assert notes(tmp_path) == ""
    assert all(Path(clip.path).is_file() for clip in (*train_clips, *held_out))


def test_flat_class_folders_are_divided_as_they_were_whatever_is_nested_elsewhere(tmp_path, videos):
    put(videos["vp9"], tmp_path, *(f"walk/{i}.webm" for i in range(10)), *(f"jump/{i}.webm" for i in range(5)))
    before = [clip.id for clip in read_dataset("folder", tmp_path, "validation").clips]
    put(videos["vp9"], tmp_path, "apart/a/1.webm", "apart/b/1.webm")
    after = [clip.id for clip in read_dataset("folder", tmp_path, "validation").clips if "apart" not in clip.id]
    assert after == before


def test_links_that_lead_back_end(root):
    (root / "train" / "jump" / "up").symlink_to(root / "train")
    (root / "train" / "walk" / "other").symlink_to(root / "train" / "jump")
    clips = read_dataset("folder", root, "train").clips
    assert {clip.id for clip in clips} >= {"walk/other/00.webm", "jump/up/walk/00.webm"}
    assert len({clip.id for clip in clips}) == len(clips) < 100


def test_a_folder_of_the_class_folders_is_no_class(tmp_path, videos):
    put(videos["vp9"], tmp_path, "clips/jump/1.webm", "clips/walk/1.webm")
    with pytest.raises(DataError, match=r"no class folder with videos in it but clips/.*jump, walk.*Move them up"):
        read_dataset("folder", tmp_path, "train")


def test_a_data_set_one_folder_further_down_is_told(tmp_path, videos):
    put(videos["vp9"], tmp_path, *(f"mine/{split}/{name}/1.webm" for split in ("train", "val") for name in "ab"))
    with pytest.raises(DataError, match=rf"has no class folder, but mine/ with train, val; give {tmp_path}/mine"):
        read_dataset("folder", tmp_path, "train")


def test_folders_named_nearly_like_splits_are_no_classes(tmp_path, videos):
    put(videos["vp9"], tmp_path, "Training/a/1.webm", "jump/1.webm", "walk/1.webm")
    refused(tmp_path, r"named like splits, which are train, val and test in small letters,: 1, Training")


def test_an_unknown_extension_is_named_and_a_tenth_of_them_refused(root, videos):
    put(videos["vp9"], root, "train/jump/10.r3d", "train/jump/deeper/11")
    assert notes(root) == (
        "passed over: files that are no videos by their extension: 2, train/jump/10.r3d, train/jump/deeper/11"
    )
    put(videos["vp9"], root, "train/walk/12.webm.part")
    refused(root, r"extension: 3 of 23, train/jump/10\.r3d, train/jump/deeper/11, train/walk/12\.webm\.part; convert")
    assert "3, train/jump/10.r3d" in notes(root, accept_gaps=True)
    assert notes(root, split="validation") == ""


@pytest.mark.parametrize("extension", [".R3D", "", ".zip", ".jpg"])
def test_a_class_of_nothing_that_is_read_is_refused_by_name(root, extension):
    (root / "train" / "sit" / "s1").mkdir(parents=True)
    for number in range(3):
        (root / "train" / "sit" / "s1" / f"{number}{extension}").write_bytes(b"123")
    kind = extension.lower() or "no extension"
    refused(root, rf"class folders without a video: 1, train/sit \(3 of {kind}\)")
    assert "train/sit" in notes(root, accept_gaps=True)
    assert len(load_or_build_index("folder", root, "train", accept_gaps=True)) == 20


def test_a_class_that_validation_alone_can_read_is_told_with_its_reason(root, videos):
    put(videos["vp9"], root, "train/sit/1.braw", "val/sit/1.webm")
    with pytest.raises(DataError, match=r"classes that train has not: sit \(.*train/sit \(1 of \.braw\)\)"):
        read_dataset("folder", root, "validation")


def test_videos_outside_class_folders_and_splits_are_named(root, videos):
    put(videos["vp9"], root, "train/loose.webm", "raw/1.webm", "raw/sub/2.webm")
    (root / "train" / "sit").mkdir()
    found = notes(root)
    assert "videos beside the class folders: 1, train/loose.webm" in found
    assert "videos outside the folders of the splits: 2, raw/1.webm, raw/sub/2.webm" in found
    assert "folders without a file: 1, train/sit" in found
    put(videos["vp9"], root, "train/loose2.webm", "train/loose3.webm")
    refused(root, r"beside the class folders: 3 of 23, train/loose\.webm")


def test_what_lies_beside_videos_is_no_loss_and_not_named(root, videos):
    for name in (
        *("README", "LICENSE.md", "train/classes.txt", "train/jump/00.srt", "train/jump/00.vtt", "train/jump/00.json"),
        *("train/walk/poster.jpg", "train/walk/00.wav", "train/walk/.hidden.r3d", "train/.cache/x.mp4", "jump.rar"),
        *("train/walk/._00.webm", "train/__MACOSX/._x.mp4", "train/notes/a.txt", "val/walk/Thumbs.db", ".aim-fast/y"),
        *("train/jump/00.npy", "train/jump/cover.webp", "train/jump/sound.ogg", "train/jump/00.THM", "val/SHA256SUMS"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 50)
    for split in ("train", "validation"):
        assert notes(root, split=split) == ""
    assert len(load_or_build_index("folder", root, "train")) == 20


def test_hmdb51_without_a_list_of_a_class_that_is_there(official):
    root = official("hmdb51")
    (root / "testTrainMulti_7030_splits" / "wave_test_split1.txt").unlink()
    for split in ("train", "validation"):
        refused(root, r"class folders of which no list names a video: 1, .*wave \(\d videos\)", "hmdb51", split)
    found = notes(root, "hmdb51", accept_gaps=True)
    assert "the annotations have 1 of 51 classes of hmdb51" in found
    assert "wave" in found
    assert "wave" not in notes(root, "hmdb51-split2")  # whose lists are all there


def test_a_class_of_an_empty_list_is_lost_as_one_without_a_list(official):
    root = official("hmdb51")
    (root / "testTrainMulti_7030_splits" / "wave_test_split1.txt").write_text("")
    refused(root, r"class folders of which no list names a video: 1, .*wave", "hmdb51")


@pytest.mark.parametrize(
    ("name", "count"),
    [("hmdb51", 51), ("ucf101-split2", 101), ("kinetics600", 600), ("diving48", 48), ("jester", 27), ("ssv1", 174)],
)
def test_classes_of_an_official_data_set_that_are_not_all_there_are_counted(official, name, count):
    root = official(name)
    assert notes(root, name) == f"the annotations have 2 of {count} classes of {name}"


@pytest.mark.parametrize(("name", "folder"), [("ucf101", "UCF-101/Yo_Yo"), ("kinetics400", "train/welding")])
def test_a_class_folder_that_no_list_names_is_refused(official, videos, name, folder):
    root = official(name)
    put(videos["h264"], root, f"{folder}/a.mp4", f"{folder}/b.mp4")
    refused(root, rf"class folders of which no list names a video: 1, {folder} \(2 videos\)", name)
    assert folder in notes(root, name, accept_gaps=True)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ucf101", "UCF-101/JumpRope/v_JumpRope_g99_c01.avi"),
        ("hmdb51", "brush_hair/new.avi"),
        ("kinetics400", "train/air drumming/zzzzzzzzzzz_000001_000011.mp4"),
        ("diving48", "rgb/other.mp4"),
        ("jester", "20bn-jester-v1/999/00001.jpg"),
    ],
)
def test_files_on_disk_that_no_list_names_are_counted_and_named(official, videos, name, file):
    root = official(name)
    put(videos["h264"], root, file)
    inside = file if name != "jester" else str(Path(file).parent)
    assert any(line.startswith("passed over: videos that no list names: 1, ") and inside in line
               for line in notes(root, name).split("\n"))  # fmt: skip


def test_files_of_other_splits_and_copies_in_other_places_are_named_by_a_list(ssv2, videos, official):
    root = ssv2([videos["vp9"]] * 4)
    (root / "test.json").write_text("[]")
    put(videos["vp9"], root, "original/1000.webm", "original/1003.webm")
    assert [line for line in notes(root, "ssv2").split("\n") if "no list" in line] == []
    put(videos["vp9"], root, "20bn-something-something-v2/7.webm")
    assert "videos that no list names: 1, 20bn-something-something-v2/7.webm" in notes(root, "ssv2")


@pytest.mark.parametrize("arguments", [("index",), ("shard", "--output", "OUT"), ("transcode", "--output", "OUT")])
def test_every_command_that_reads_a_data_root_refuses_or_goes_on_and_says_what_is_left_out(
    aim_fast, root, tmp_path, arguments
):
    (root / "train" / "sit").mkdir()
    (root / "train" / "sit" / "1.r3d").write_bytes(b"123")
    command = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    status, out, err = aim_fast(*command, "--dataset", "folder", "--data-root", root)
    assert (status, out) == (2, "")
    assert err.startswith("aim-fast: error: ")
    assert "train/sit (1 of .r3d)" in err
    status, out, err = aim_fast(*command, "--dataset", "folder", "--data-root", root, "--accept-gaps")
    assert status == 0, err
    assert "train/sit (1 of .r3d)" in out + err


def test_training_and_scoring_refuse_or_go_on(aim_fast, root, trunk, tmp_path):
    (root / "train" / "sit").mkdir()
    (root / "train" / "sit" / "1.r3d").write_bytes(b"123")
    (root / "val" / "walk" / "c.braw").write_bytes(b"123")
    common = ("--device", "cpu", "--data-root", root)
    train = ("train", "--model", "aim_vit_demo", "--weights", trunk, "--dataset", "folder", *common, "--epochs", 0,
             "--batch-size", 4, "--total-batch-size", 4, "--output", tmp_path / "run")  # fmt: skip
    status, _, err = aim_fast(*train)
    assert status == 2
    assert "train/sit (1 of .r3d)" in err
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    status, _, err = aim_fast(*train, "--accept-gaps")
    assert status == 0, err
    assert "train/sit (1 of .r3d)" in err
    status, _, err = aim_fast("eval", tmp_path / "run", *common, "--no-accept-gaps")
    assert status == 2
    assert "1 of 5, val/walk/c.braw" in err
    status, _, err = aim_fast("eval", tmp_path / "run", *common)  # as it was trained
    assert status == 0, err


def test_nested_class_folders_are_transcoded_and_sharded_with_their_folders(aim_fast, tmp_path, videos):
    root = tmp_path / "data"
    put(videos["vp9"], root, *(f"{name}/s{i}/{name}{i}.webm" for name in ("run", "sit") for i in range(4)))
    labels = {f"{name}/s{i}/{name}{i}" for name in ("run", "sit") for i in range(4)}
    common = ("--dataset", "folder", "--data-root", root)
    status, _, err = aim_fast("transcode", *common, "--output", tmp_path / "small", "--short-side", 64)
    assert status == 0, err
    status, _, err = aim_fast("shard", *common, "--output", tmp_path / "shards")
    assert status == 0, err
    for split in ("train", "validation"):
        before = {clip.id.removesuffix(".webm"): clip.label for clip in read_dataset("folder", root, split).clips}
        small = {Path(clip.id).with_suffix("").as_posix(): clip.label
                 for clip in read_dataset("folder", tmp_path / "small", split).clips}  # fmt: skip
        shards = {clip.id.removesuffix(".webm"): clip.label
                  for clip in read_dataset("webdataset", tmp_path / "shards", split).clips}  # fmt: skip
        assert before == small == shards
        labels -= before.keys()
    assert not labels
