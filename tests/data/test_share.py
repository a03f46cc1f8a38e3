"""Shares of a training split."""

from collections import Counter
from dataclasses import replace

import pytest

from aim_fast.data.index.rows import Index, Row
from aim_fast.data.index.selection import draw_share

SIZES = {0: 200, 1: 50, 2: 7}


@pytest.fixture
def index():
    row = Row("", 0, "", 16, 8, 8, "vp9", "yuv420p", 0, 1, 1, None)
    labels = [label for label, size in SIZES.items() for _ in range(size)]
    rows = [replace(row, path=f"{number}.webm", label=label) for number, label in enumerate(labels)]
    return Index("folder", "train", "/", ["a", "b", "c"], rows)


@pytest.mark.parametrize(
    ("share", "counts"), [(0.01, (2, 1, 1)), (0.1, (20, 5, 1)), (0.5, (100, 25, 4)), (1, (200, 50, 7))]
)
def test_every_class_keeps_its_share_and_at_least_one_clip(index, share, counts):
    part = draw_share(index, share, seed=3)
    assert Counter(row.label for row in part.rows) == dict(enumerate(counts))
    numbers = [int(row.path.split(".")[0]) for row in part.rows]
    assert numbers == sorted(numbers)


def test_a_smaller_share_is_part_of_a_larger_one_and_other_seeds_draw_others(index):
    shares = {share: {row.path for row in draw_share(index, share, 3).rows} for share in (0.01, 0.1, 0.5)}
    assert shares[0.01] < shares[0.1] < shares[0.5]
    assert shares[0.5] != {row.path for row in draw_share(index, 0.5, 4).rows}
    assert len(draw_share(index, 0.5, 3).healthy) == 129
