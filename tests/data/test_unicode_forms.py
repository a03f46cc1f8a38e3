"""Names with accents of one character or of two (NFC, NFD): one class and one file, wherever they are written."""

from __future__ import annotations

import json
import shutil
import unicodedata

import pytest

from aim_fast.data.copies.shard import write_shards
from aim_fast.data.formats import read_dataset
from aim_fast.data.index.indexing import load_or_build_index
from aim_fast.data.index.selection import choose_classes
from aim_fast.data.index.splits import same_classes
from aim_fast.models.identity import Identity
from aim_fast.training.conversion import read_class_names

WORDS = ("Übergabe", "naïve Drehung", "各種ガ")
ONE, TWO = ([unicodedata.normalize(form, word) for word in WORDS] for form in ("NFC", "NFD"))
assert ONE != TWO


@pytest.mark.parametrize(("train", "val"), [(ONE, TWO), (TWO, ONE), (TWO, TWO)])
def test_folders_of_two_forms_are_one_class(tmp_path, videos, train, val):
    for split, names, video in (("train", train, "vp9"), ("val", val, "vp9_other")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            shutil.copy(videos[video], tmp_path / split / name)
    assert same_classes("folder", tmp_path) == sorted(ONE)
    clips = read_dataset("folder", tmp_path, "validation").clips
    assert sorted({clip.label for clip in clips}) == [0, 1, 2]
    index = load_or_build_index("folder", tmp_path, "validation")
    assert len(index.healthy) == 3
    write_shards([index], tmp_path / "shards")
    assert read_dataset("webdataset", tmp_path / "shards", "validation").classes == sorted(ONE)


@pytest.mark.parametrize("below", ["train", "."])
def test_one_class_in_two_folders_of_one_split(tmp_path, videos, below):
    for number, name in enumerate((ONE[0], TWO[0], "plain", "plain")):
        (tmp_path / below / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(videos["vp9"], tmp_path / below / name / f"{number}.webm")
    train = read_dataset("folder", tmp_path, "train")
    assert train.classes == sorted([ONE[0], "plain"])
    held_out = read_dataset("folder", tmp_path, "validation").clips if below == "." else []
    assert sorted(clip.path[-6] for clip in (*train.clips, *held_out)) == ["0", "1", "2", "3"]
    labels = {clip.path[-6]: train.classes[clip.label] for clip in (*train.clips, *held_out)}
    assert labels == {"0": ONE[0], "1": ONE[0], "2": "plain", "3": "plain"}


@pytest.mark.parametrize(("written", "there"), [(ONE, TWO), (TWO, ONE)])
def test_lists_find_files_and_classes_of_the_other_form(tmp_path, videos, written, there):
    for name in there:
        (tmp_path / name).mkdir()
        shutil.copy(videos["vp9"], tmp_path / name / f"{name}.webm")
    lines = "".join(f"{name}/{name}.webm,{name}\n" for name in written)
    (tmp_path / "train.csv").write_text(lines + f"{there[0]}/{there[0]}.webm,{there[0]}\n")
    listing = read_dataset("list", tmp_path, "train")
    assert listing.classes == sorted(ONE)
    assert [clip.path for clip in listing.clips] == [str(tmp_path / name / f"{name}.webm") for name in there]
    assert "1 of 4 entries" in listing.notes[0]
    (tmp_path / "classes.txt").write_text("\n".join(there))
    assert read_dataset("list", tmp_path, "train").classes == ONE


def test_official_files_of_another_form_than_the_folders(official):
    root = official("kinetics400")
    for split in ("train", "val"):
        text = (root / f"{split}.csv").read_text().replace("air drumming", (ONE if split == "train" else TWO)[1])
        (root / f"{split}.csv").write_text(text)
        (root / split / "air drumming").rename(root / split / TWO[1])
    assert same_classes("kinetics400", root) == sorted([ONE[1], "playing guitar"])
    root = official("ucf101")
    for file in (root / "ucfTrainTestlist").iterdir():
        file.write_text(file.read_text().replace("JumpRope", (TWO if "class" in file.name else ONE)[0]))
    (root / "UCF-101" / "JumpRope").rename(root / "UCF-101" / TWO[0])
    listing = read_dataset("ucf101", root, "train")
    assert listing.classes == ["HandstandPushups", ONE[0]]
    assert [clip.label for clip in listing.clips] == [0, 0, 1, 1]


def test_jester_and_ssv2_compare_composed(official, ssv2, videos):
    root = official("jester")
    for file in root.glob("*.csv"):
        text = file.read_text().replace("Stop Sign", (TWO if "labels" in file.name else ONE)[0])
        file.write_text(text)
    assert read_dataset("jester", root, "train").classes == ["Swiping Left", ONE[0]]
    root = ssv2([videos["vp9"]] * 2)
    for name, word in (("labels", TWO[0]), ("train", ONE[0])):
        text = (root / f"{name}.json").read_text().replace("Dropping", word)
        (root / f"{name}.json").write_text(json.dumps(json.loads(text), ensure_ascii=False))
    assert read_dataset("ssv2", root, "train").classes[1] == f"{ONE[0]} something"


def test_chosen_saved_and_given_classes_are_composed(tmp_path):
    file = tmp_path / "names.txt"
    for encoding in ("utf-8", "utf-16"):
        file.write_text("\n".join(TWO[:2]), encoding=encoding)
        assert choose_classes(sorted(ONE), str(file), 0) == sorted(ONE[:2])
        assert read_class_names(file) == ONE[:2]
    file.write_text(json.dumps(TWO))
    assert read_class_names(file) == ONE
    assert Identity("aim_vit_demo", {}, TWO).classes == ONE
