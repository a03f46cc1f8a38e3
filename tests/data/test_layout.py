"""The one place that finds a data set's files and refuses what is not there; and a format made of a file and a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aim_fast.data import formats
from aim_fast.data.formats import chosen_dataset, read_dataset
from aim_fast.data.formats.videos import Videos
from aim_fast.data.index.indexing import load_or_build_index
from aim_fast.errors import DataError, UsageError

TABS = '''
"""Lines of an id, a tab and a class."""

from aim_fast.data.formats.annotation import numbered_lines
from aim_fast.data.formats.layout import Layout
from aim_fast.data.formats.listing import Listing

LAYOUT = Layout(text="train.tsv and val.tsv and videos as clips/<id>.mp4", source="made here", videos=("clips",))


def read(data):
    lines = [line.split("\\t") for _, line in numbered_lines(data.annotation(f"{data.split_names[0]}.tsv"))]
    classes = sorted({name for _, name in lines})
    return Listing(classes, [data.clip(id, classes.index(name), f"{id}.mp4") for id, name in lines])
'''


@pytest.fixture
def tabs(tmp_path, monkeypatch, videos) -> Path:
    """The root of a data set whose format is a file of its own and a line in the table."""
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "tabs.py").write_text(TABS)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "formats")])
    monkeypatch.setitem(formats.FORMATS, "tabs", ("tabs", {}))
    root = tmp_path / "data"
    (root / "labels").mkdir(parents=True)
    (root / "clips").mkdir()
    for split in ("train", "val"):
        (root / "labels" / f"{split}.tsv").write_text(f"{split}1\twalk\n\n{split}2\tjump\n")
        for number in (1, 2):
            shutil.copy2(videos["vp9"], root / "clips" / f"{split}{number}.webm")
    return root


def test_a_new_format_is_a_file_and_a_line(tabs):
    index = load_or_build_index("tabs", tabs, "train")
    assert index.classes == ["jump", "walk"]
    assert [(Path(row.path).name, row.label, row.frames) for row in index.rows] == [
        ("train1.webm", 1, 30),
        ("train2.webm", 0, 30),
    ]
    (tabs / "clips" / "val1.webm").unlink()
    assert [clip.path for clip in read_dataset("tabs", tabs, "validation").clips] == [
        str(tabs / "clips" / "val1.mp4"),
        str(tabs / "clips" / "val2.webm"),
    ]


def test_what_a_new_format_lacks_is_refused_in_the_same_words(tabs):
    expected = r"; expected train\.tsv and val\.tsv and videos as clips/<id>\.mp4"
    with pytest.raises(DataError, match=r"train\.tsv is not a folder" + expected):
        read_dataset("tabs", tabs / "labels" / "train.tsv", "train")
    with pytest.raises(DataError, match=rf"test\.tsv not found in {tabs} or its annotations/{expected}; found: clips/"):
        read_dataset("tabs", tabs, "test")
    for file in (tabs / "clips").iterdir():
        file.unlink()
    first = r"none of the 2 videos of the train annotations is under .*, the first is clips/train1\.mp4"
    with pytest.raises(DataError, match=first + expected):
        read_dataset("tabs", tabs, "train")
    (tabs / "labels" / "train.tsv").write_text("\n")
    with pytest.raises(DataError, match="no train clips found under .*" + expected):
        read_dataset("tabs", tabs, "train")


def test_of_videos_of_one_name_the_class_decides_then_the_folder_then_the_extension(tmp_path):
    files = ["a/1.mp4", "b/1.avi", "b/1.webm", "old/Jump_High/1.mp4", "1.webm", "a/2.mp4", "b/jump high/3.mp4"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    videos = Videos(tmp_path, ("none", "b", "a"), depth=2)

    def found(*asked: str) -> str | None:
        path = videos.find(*asked)
        return path and str(Path(path).relative_to(tmp_path))

    assert found("1.mp4", "jump high") == "old/Jump_High/1.mp4"
    assert found("1.webm") == "b/1.webm"
    assert found("class/1.avi", "class") == "b/1.avi"
    assert found("2.avi") == "a/2.mp4"
    assert found("4.mp4") is None
    assert videos.expected("4.mp4", "jump high") == str(tmp_path / "b" / "jump high" / "4.mp4")
    assert videos.expected("run/4.mp4", "run") == str(tmp_path / "b" / "run" / "4.mp4")
    assert Videos(tmp_path, (), depth=1).find("3.mp4") is None


def test_a_data_set_is_asked_for_with_its_root(tmp_path):
    assert chosen_dataset("ssv2", "~/x") == ("ssv2", Path.home() / "x")
    with pytest.raises(UsageError, match="no data set: give --dataset NAME"):
        chosen_dataset(None, tmp_path)
    with pytest.raises(UsageError, match="no folder for data set ssv2: give --data-root DIR"):
        chosen_dataset("ssv2", "")
