"""Files of class names beside lists and shards: what is one, what is another tool's, and what is refused."""

from __future__ import annotations

import io
import tarfile

import pytest

from aim_fast.data.formats import read_dataset
from aim_fast.errors import DataError

NAMES = ["arrange flowers", "bake", "clap"]


@pytest.fixture
def root(tmp_path):
    """A list of six clips with labels 0 to 2."""
    (tmp_path / "train.txt").write_text("".join(f"sub/take{i}.mp4 {i % 3}\n" for i in range(6)))
    return tmp_path


@pytest.mark.parametrize("file", ["classes.txt", "labels.txt"])
@pytest.mark.parametrize(
    "text",
    [
        "arrange flowers\nbake\nclap\n",
        '"arrange flowers"\r\n\r\n"bake"\r\n"clap"',
        "0 arrange flowers\n1 bake\n2 clap",
        "arrange flowers 0\nbake 1\nclap 2",
        "2,clap\n0,arrange flowers\n1,bake",
        "id;name\n0;arrange flowers\n1;bake\n2;clap",
        "1\tarrange flowers\n2\tbake\n3\tclap",
        "0: arrange flowers\n1: bake\n2: clap",
        "# of the kitchen\n// all of them\narrange flowers\nbake\nclap",
        "class_name\narrange flowers\nbake\nclap",
        "\ufeffarrange flowers\nbake\nclap",
    ],
)
def test_names_with_and_without_numbers(root, file, text):
    (root / file).write_bytes(text.encode())
    listing = read_dataset("list", root, "train")
    assert listing.classes == NAMES
    assert [clip.label for clip in listing.clips] == [0, 1, 2, 0, 1, 2]
    (root / file).write_bytes(text.removeprefix("\ufeff").encode("utf-16"))
    assert read_dataset("list", root, "train").classes == NAMES


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"take{i}.mp4 {i % 3}\n" for i in range(6)),  # one label a clip
        "".join(f"take{i} {NAMES[i % 3]}\n" for i in range(6)),
        "sub/take0.mp4,clap\n",
        "0 0.5 0.5 0.25 0.25\n1 0.1 0.2 0.3 0.4\n",  # boxes
        "12 30 50 60\n",
        "0.000000\t1.500000\tbake\n1.5\t2.5\tclap\n2.5\t3\twave\n",  # a start and an end
        "0\t1\tbake\n1\t2\tclap\n2\t3\twave\n",
        "0.0 1.5 bake\n1.5 2.5 clap\n2.5 3.0 wave\n",
        "bake,0.0,1.5\nclap,1.5,2.5\nwave,2.5,3.0\n",
        "00:00:01 bake\n00:00:03 clap\n00:00:05 wave\n",
        "0:00 bake\n1:00 clap\n2:00 wave\n",
        "nc: 3\nnames: [arrange flowers, bake, clap]\n",
        "names: [arrange flowers, bake, clap]\nnc: 3\ntrain: images\n",
        "take0 bake\ntake1 clap\ntake2 wave\n",
        "sub/take0 bake\nsub/take1 clap\nsub/take2 wave\n",
    ],
)
def test_what_is_about_clips_is_not_taken_for_names(root, text):
    (root / "labels.txt").write_text(text)
    listing = read_dataset("list", root, "train")
    assert listing.classes == ["0", "1", "2"]
    assert "not taken for class names" in listing.notes[0]
    assert "labels.txt: line 1 has" in listing.notes[0]
    (root / "labels.txt").rename(root / "classes.txt")
    with pytest.raises(DataError, match=r"classes\.txt: line 1 has .*a file of classes has a name a line"):
        read_dataset("list", root, "train")


def test_yaml_and_times_below_a_first_line_are_no_names(root):
    for text in ("train: ./train\nnc: 3\nnames: [a, b, c]\n", "1\n00:00:01,000 --> 00:00:02,000\nbake\n"):
        (root / "labels.txt").write_text(text)
        assert "labels.txt: line 2 has" in read_dataset("list", root, "train").notes[0]


def test_names_that_begin_or_end_in_numbers_are_no_times(root):
    for text in ("0 100 m\n1 200 m\n2 400 m", "0\t100 m\n1\t200 m\n2\t400 m", "0: 100 m\n1: 200 m\n2: 400 m"):
        (root / "classes.txt").write_text(text)
        assert read_dataset("list", root, "train").classes == ["100 m", "200 m", "400 m"]
    (root / "classes.txt").write_text("sit 1.5 m\n1.1 stand\ntrain: arrival\n")
    assert read_dataset("list", root, "train").classes == ["sit 1.5 m", "1.1 stand", "train: arrival"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bake\nclap\nbake\n", r"line 3 has a class twice: 'bake'"),
        ("0\n0\n1\n", r"line 2 has a class twice"),
        ("#bake\nclap\nwave\n", r"line 1 may be a comment or a class"),
    ],
)
def test_what_may_be_names_is_refused_with_its_line(root, text, said):
    (root / "labels.txt").write_text(text)
    with pytest.raises(DataError, match=rf"labels\.txt: {said}"):
        read_dataset("list", root, "train")


def test_labels_count_from_one_where_names_and_labels_do(root):
    (root / "classes.txt").write_text("1 arrange flowers\n2 bake\n3 clap\n")
    (root / "train.txt").write_text("a.mp4 3\nb.mp4 1\nc.mp4 2\n")
    assert [clip.label for clip in read_dataset("list", root, "train").clips] == [2, 0, 1]
    (root / "val.txt").write_text("d.mp4 2\n")
    assert [clip.label for clip in read_dataset("list", root, "validation").clips] == [1]
    (root / "train.txt").write_text("a.mp4 1\nb.mp4 2\n")
    with pytest.raises(DataError, match=r"neither 0 nor 3.*write the names without numbers"):
        read_dataset("list", root, "train")


def test_names_that_end_in_numbers_stay_where_the_list_has_them(root):
    (root / "classes.txt").write_text("level 1\nstage 2\n")
    (root / "train.txt").write_text("a.mp4 level 1\nb.mp4 stage 2\n")
    assert read_dataset("list", root, "train").classes == ["level 1", "stage 2"]
    (root / "classes.txt").write_text("walk 1\nwalk 2\nrun 1\n")
    (root / "train.txt").write_text("a.mp4 0\nb.mp4 2\n")
    assert read_dataset("list", root, "train").classes == ["walk 1", "walk 2", "run 1"]


def shard(path, samples):
    """A tar of (key, {extension: text}); every sample has a video of its own bytes."""
    with tarfile.open(path, "w") as archive:
        for number, (key, texts) in enumerate(samples):
            for extension, content in {"mp4": f"video {number} of {path.name}", **texts}.items():
                data = content if isinstance(content, bytes) else content.encode()
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def test_shards_take_the_same_files_of_names(tmp_path):
    shard(tmp_path / "train-000000.tar", [(f"{n:04d}", {"cls": str(n % 3)}) for n in range(6)])
    (tmp_path / "classes.txt").write_text("0,arrange flowers\n1,bake\n2,clap\n")
    assert read_dataset("webdataset", tmp_path, "train").classes == NAMES
    (tmp_path / "classes.txt").write_text("0001.mp4 0\n")
    with pytest.raises(DataError, match=r"classes\.txt: line 1 has the name of a video"):
        read_dataset("webdataset", tmp_path, "train")


@pytest.mark.parametrize("labels", [["0.0", "1.0", "2.0"], ["\ufeff0", "1\r\n", "2"], [b"\xff\xfe0\0", "1", "2"]])
def test_labels_of_shards_in_other_forms(tmp_path, labels):
    shard(tmp_path / "train-000000.tar", [(f"k{n}", {"cls": label}) for n, label in enumerate(labels)])
    listing = read_dataset("webdataset", tmp_path, "train")
    assert (listing.classes, [clip.label for clip in listing.clips]) == (["0", "1", "2"], [0, 1, 2])


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"json": '{"label": [0, 1]}'}, r"sample k3 has label \[0, 1\]; expected one"),
        ({"cls": "0\n2"}, r"sample k3 has label '0\\n2'"),
        ({"json": '{"label": true}'}, r"sample k3 has label True"),
        ({"cls": "1", "json": '{"label": 2}'}, r"sample k3 has label 1 in its \.cls and 2 in its \.json"),
        ({"cls": b"caf\xe9"}, r"k3\.cls is not UTF-8"),
        ({"cls": "wave"}, r"sample k3 has label 'wave', most others class numbers"),
        ({"cls": "-1"}, r"sample k3 has label '-1'"),
        ({"cls": "0 1"}, r"sample k3 has several labels: '0 1'"),
        ({"cls": "0,1"}, r"sample k3 has several labels: '0,1'"),
        ({"cls": "0;1"}, r"sample k3 has several labels"),
        ({"cls": "0|1"}, r"sample k3 has several labels"),
        ({"cls": "[0, 1]"}, r"sample k3 has several labels"),
        ({"json": '{"label": "0,1"}'}, r"sample k3 has several labels"),
    ],
)
def test_labels_of_shards_that_are_none_are_refused_by_sample(tmp_path, texts, said):
    shard(tmp_path / "train-000000.tar", [*((f"k{n}", {"cls": str(n)}) for n in range(3)), ("k3", texts)])
    with pytest.raises(DataError, match=said):
        read_dataset("webdataset", tmp_path, "train")


def test_shards_whose_labels_are_all_several_are_refused_and_names_may_hold_names_where_a_file_has_them(tmp_path):
    shard(tmp_path / "train-000000.tar", [(f"k{n}", {"cls": f"{n} {(n + 1) % 3}"}) for n in range(3)])
    with pytest.raises(DataError, match=r"sample k0 has several labels: '0 1'"):
        read_dataset("webdataset", tmp_path, "train")
    names = ["run", "jump", "run jump"]
    shard(tmp_path / "train-000000.tar", [(f"k{n}", {"cls": name}) for n, name in enumerate(names)])
    with pytest.raises(DataError, match=r"sample k2 has several labels: 'run jump'.*classes\.txt"):
        read_dataset("webdataset", tmp_path, "train")
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert read_dataset("webdataset", tmp_path, "train").classes == names
