"""What is said to limit training follows from the figures, and the advice from what the files are."""

import pytest

from aim_fast.data import Index
from aim_fast.data.index.rows import Row
from aim_fast.studies.data_limits import DataLimits, judge


def found(**figures) -> DataLimits:
    base = {"clips": 100, "mean_kib": 90.0, "decode": {"cpu": 50.0, "pyav": 40.0}, "threads": 1, "read_mib": 90.0}
    base |= {"read_clips": 1000.0, "step": 100.0, "gop": 12, "short_side": 240}
    made = DataLimits(**base | figures)
    row = Row("a.webm", 0, "a", 40, 240, 427, "vp9", "yuv420p", 0, 90_000, 0, None)
    judge(made, Index("folder", "train", "/", ["a"], [row] * 100))
    return made


@pytest.mark.parametrize(
    ("figures", "limit", "wait"),
    [
        ({}, "decoding", 0.5),
        ({"step": 10.0}, "the step", 0.0),
        ({"read_clips": 20.0}, "reading", 0.8),
        ({"step": None}, "decoding", None),
    ],
)
def test_the_slowest_part_is_named(figures, limit, wait):
    made = found(**figures)
    assert (made.limit, made.data_wait) == (limit, pytest.approx(wait) if wait else wait)
    assert limit in made.lines["limited by"]


def test_advice_is_what_helps_against_the_limit():
    assert not any("transcode" in line for line in found().advice)
    assert any("transcode" in line and "every 128" in line for line in found(gop=128).advice)
    assert any("transcode" in line and "short side of 1080" in line for line in found(short_side=1080).advice)
    assert any("--cache frames needs 1.1 GiB raw" in line for line in found().advice)
    assert any("aim-fast shard" in line for line in found(read_clips=1.0).advice)
    assert any("pyav is the fastest" in line for line in found(decode={"cpu": 5.0, "pyav": 9.0}).advice)
    assert found(step=1.0).advice == ["the data path keeps up: nothing to do for it"]
