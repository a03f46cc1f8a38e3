"""Several labels a clip: in lists, in class folders, in Charades' files; and refused where nobody asked for them."""

import pytest

from aim_fast.data.formats import read_dataset
from aim_fast.data.index.index_file import read_index, write_index
from aim_fast.data.index.repeats import count_once
from aim_fast.data.index.rows import Index, Row
from aim_fast.data.video.probe import Probe, file_state
from aim_fast.errors import AimFastError, DataError, UsageError


@pytest.fixture
def listed(tmp_path):
    """Reads a list of that text, with a file of class names where there is one: (classes, labels of each clip)."""
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())

    def read(text, names=None, multi_label=True):
        (tmp_path / "train.txt").write_text(text)
        if names:
            (tmp_path / "classes.txt").write_text("\n".join(names))
        found = read_dataset("list", tmp_path, "train", multi_label)
        return found.classes, [clip.labels for clip in found.clips]

    return read


RUN = (["jump", "run"], [(0, 1), (1,), ()])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.mp4 0 2\nb.mp4 1\nc.mp4\n", (["0", "1", "2"], [(0, 2), (1,), ()])),
        ("a.mp4,2,0\nb.mp4,1\nc.mp4\n", (["0", "1", "2"], [(0, 2), (1,), ()])),
        ("a.mp4 [0, 2]\nb.mp4 [1]\nc.mp4 []\n", (["0", "1", "2"], [(0, 2), (1,), ()])),
        ("a.mp4 run;jump\nb.mp4 run\nc.mp4\n", RUN),
        ('path,labels\na.mp4,"run,jump"\nb.mp4,run\nc.mp4,\n', RUN),
        ("path\tframes\tlabel\na.mp4\t30\trun|jump\nb.mp4\t31\trun\nc.mp4\t2\t\n", RUN),
        ("path,label\na.mp4,run\nb.mp4,run\na.mp4,jump\nc.mp4,\n", RUN),
        ("a.mp4 run jump\nb.mp4 run\nc.mp4 jump\n", (["jump", "run"], [(0, 1), (1,), (0,)])),
        ("a.mp4 jump high;run\nb.mp4 run\n", (["jump high", "run"], [(0, 1), (1,)])),
    ],
    ids=["blanks", "commas", "brackets", "semicolons", "cell", "bars", "lines", "words", "names with blanks"],
)
def test_a_list_gives_a_clip_all_of_its_labels(listed, text, found):
    assert listed(text) == found


def test_a_file_of_classes_says_what_is_one_name(listed):
    names = ["Put it, slowly", "Run", "Stay"]
    assert listed("a.mp4 Put it, slowly;Run\nb.mp4 Run Stay\n", names) == (names, [(0, 1), (1, 2)])
    with pytest.raises(DataError, match="line 2 has label 'Walk'"):
        listed("a.mp4 Run\nb.mp4 Run;Walk\n")


@pytest.mark.parametrize("text", ["a.mp4 0 2\nb.mp4 1\n", "a.mp4 run;jump\nb.mp4 run\nc.mp4 jump\n"])
def test_several_labels_are_refused_where_nobody_asked_for_them(listed, text):
    with pytest.raises(DataError, match="several labels"):
        listed(text, multi_label=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [("a.mp4 0 -3\n", "line 1 has a negative label"), ("a.mp4 run 2\nb.mp4 1\n", "among labels that are names")],
)
def test_labels_that_cannot_be_are_refused_with_their_line(listed, text, said):
    with pytest.raises(DataError, match=said):
        listed(text)


def test_a_data_set_of_one_label_and_one_of_several_each_say_so(tmp_path):
    with pytest.raises(UsageError, match="ssv2 has one label a clip: leave --multi-label out"):
        read_dataset("ssv2", tmp_path, "train", multi_label=True)
    with pytest.raises(UsageError, match="charades has several labels a clip: give --multi-label"):
        read_dataset("charades", tmp_path, "train")


def test_a_clip_lies_in_the_folder_of_each_of_its_classes(tmp_path):
    for place, text in {
        "train/A/1": "one",
        "train/B/1": "one",
        "train/B/2": "two",
        "val/A/3": "3",
        "val/B/4": "4",
    }.items():
        (tmp_path / f"{place}.mp4").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{place}.mp4").write_text(text)
    found = read_dataset("folder", tmp_path, "train", multi_label=True)
    assert [(clip.id, clip.labels) for clip in found.clips] == [("1.mp4", (0, 1)), ("2.mp4", (1,))]


def test_folders_that_are_divided_here_keep_a_clip_on_one_side(tmp_path):
    for name in "AB":
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.mp4").write_text(f"clip {number}")
    train, held_out = (read_dataset("folder", tmp_path, split, True) for split in ("train", "validation"))
    assert len(train.clips) == 16
    assert len(held_out.clips) == 4
    assert all(clip.labels == (0, 1) for clip in train.clips + held_out.clips)
    assert not {clip.id for clip in train.clips} & {clip.id for clip in held_out.clips}


def test_a_link_gives_its_label_to_the_file_and_an_index_keeps_them_all(tmp_path):
    (tmp_path / "a.mp4").write_text("a")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    rows = []
    for name, label, others in (("a", 0, (2,)), ("b", 1, ())):
        path = str(tmp_path / f"{name}.mp4")
        size, time = file_state(path)
        clip = Row(path, label, name, 9, 8, 8, "h264", "yuv420p", 0, size, time, None, others=others)
        rows.append(Row.of(clip, Probe(frames=9, size=size, mtime_ns=time)))
    index = count_once(Index("list", "train", str(tmp_path), ["x", "y", "z"], rows, multi_label=True))
    assert [row.labels for row in index.rows] == [(0, 1, 2)]
    assert index.targets(index.rows).tolist() == [[1, 1, 1]]
    write_index(index, tmp_path, complete=True)
    assert read_index(next((tmp_path / ".aim-fast").glob("*.npz")), tmp_path) == (index, True)


def charades(root, train="A,1,c001 0.00 5.00;c000 2.10 9.00\nB,1,\n"):
    (root / "Charades_v1_480").mkdir(exist_ok=True)
    for name in "ABC":
        (root / "Charades_v1_480" / f"{name}.mp4").write_text(name)
    (root / "Charades_v1_classes.txt").write_text("c000 Holding some clothes\nc001 Putting clothes somewhere\n")
    (root / "Charades_v1_train.csv").write_text("id,subject,actions\n" + train)
    (root / "Charades_v1_test.csv").write_text("id,subject,actions\nC,2,c000 1.00 2.00;c000 4.00 5.00\n")


def test_charades_gives_a_video_all_of_its_actions(tmp_path):
    charades(tmp_path)
    train, test = (read_dataset("charades", tmp_path, split, True) for split in ("train", "validation"))
    assert train.classes == ["Holding some clothes", "Putting clothes somewhere"]
    assert [(clip.id, clip.labels) for clip in train.clips] == [("A", (0, 1)), ("B", ())]
    assert [(clip.id, clip.labels) for clip in test.clips] == [("C", (0,))]
    charades(tmp_path, "A,1,c009 0.00 5.00\n")
    with pytest.raises(AimFastError, match="line 2 \\(A\\) has action 'c009'"):
        read_dataset("charades", tmp_path, "train", True)
