"""Parts of a split: some classes, K clips of each, listed clips; what there is not is named."""

import pytest

from aim_fast.data.index.rows import Index, Row
from aim_fast.data.index.selection import choose_classes, draw_shots, keep_classes, keep_listed
from aim_fast.errors import DataError, UsageError

CLASSES = ["dive", "jump", "run", "swim"]


def row(number, label, error=None):
    return Row(f"/data/{number}.mp4", label, str(number), 16, 64, 64, "h264", "yuv420p", 0, 1000, 0, error)


@pytest.fixture
def index():
    """Six clips of each class; one of "swim" is broken."""
    rows = [row(number, number % 4, "is cut off" if number == 3 else None) for number in range(24)]
    return Index("list", "train", "/data", CLASSES, rows)


def test_shots_take_as_many_decodable_clips_of_each_class(index):
    drawn = draw_shots(index, 5, seed=0)
    assert [sum(row.label == label for row in drawn.rows) for label in range(4)] == [5, 5, 5, 5]
    assert all(row.healthy for row in drawn.rows)


def test_shots_depend_on_the_seed_and_on_nothing_else(index):
    draws = [[row.id for row in draw_shots(index, 2, seed).rows] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_class_with_too_few_clips_is_named(index):
    with pytest.raises(DataError, match="class 'swim' has 5 train clips, too few for 6 shots: use --shots 5"):
        draw_shots(index, 6, seed=0)


def test_classes_are_drawn_by_the_seed_and_keep_their_order():
    drawn = {seed: choose_classes(CLASSES, "2", seed) for seed in range(8)}
    assert drawn[0] == choose_classes(CLASSES, "2", 0)
    assert len({tuple(names) for names in drawn.values()}) > 1
    assert all(names == sorted(names) for names in drawn.values())


def test_classes_come_from_a_file(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("swim\n\ndive\n")
    assert choose_classes(CLASSES, str(file), 0) == ["dive", "swim"]
    file.write_text("swin\n")
    with pytest.raises(UsageError, match="'swin' is no class of the data set; did you mean 'swim'"):
        choose_classes(CLASSES, str(file), 0)
    with pytest.raises(UsageError, match="5 classes are asked for, and the data set has 4"):
        choose_classes(CLASSES, "5", 0)
    with pytest.raises(UsageError, match="cannot be read as a list of classes"):
        choose_classes(CLASSES, str(tmp_path / "none.txt"), 0)


def test_kept_classes_are_numbered_anew(index):
    kept = keep_classes(index, ["jump", "swim"])
    assert kept.classes == ["jump", "swim"]
    assert {(int(row.id) % 4, row.label) for row in kept.rows} == {(1, 0), (3, 1)}


def test_clips_are_listed_by_id_or_path(index, tmp_path):
    file = tmp_path / "clips.txt"
    file.write_text("0\n5.mp4\n/data/2.mp4\n7\n")
    assert [row.id for row in keep_listed(index, str(file)).rows] == ["0", "2", "5", "7"]
    file.write_text("0\n1\n2\n")
    with pytest.raises(DataError, match="no clip of class 'swim'"):
        keep_listed(index, str(file))
    file.write_text("0\n99.avi\n")
    with pytest.raises(UsageError, match=r"'99\.avi' is no train clip"):
        keep_listed(index, str(file))
    file.write_text("0\n0\n")
    with pytest.raises(UsageError, match="names '0' twice"):
        keep_listed(index, str(file))


def test_lists_from_other_systems_are_read(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_bytes("\ufeffjump\r\nswím\r\n".encode())
    assert choose_classes(["jump", "run", "swím"], str(file), 0) == ["jump", "swím"]
    with pytest.raises(UsageError, match="cannot be read as a list"):
        choose_classes(["jump", "run"], "²", 0)
