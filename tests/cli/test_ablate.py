"""`aim-fast ablate`: a study that is not repeated, goes on where it was, and ends in a table."""

import csv
import json

import pytest

from aim_fast.training.metrics import read_metrics
from aim_fast.training.stop import StopRequest

CELLS = ("ratio-1-16", "ratio-1-8", "ratio-1-4", "ratio-1-2")


@pytest.fixture
def study(tiny):
    """Options of a study whose cells take about a second each."""
    return ("ablate", "--study", "ratios", *tiny, "--epochs", 2, "--quiet")


def eval_and_losses(folder):
    return [(r["step"], r["loss"]) for r in read_metrics(folder) if r["kind"] in ("train", "eval")]


@pytest.mark.slow
def test_a_stopped_study_goes_on_and_gives_what_an_unbroken_one_gives(aim_fast, study, tmp_path, monkeypatch):
    steps = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "agreed", lambda self: next(steps) >= 12)  # in the second cell's first epoch
        status, out, err = aim_fast(*study, "--output", tmp_path / "study")
    assert status == 0, err
    assert "the same command goes on with it" in out
    assert [row["key"] for row in json.loads((tmp_path / "study" / "study.json").read_text())["results"]] == [CELLS[0]]
    first = (tmp_path / "study" / CELLS[0] / "metrics.jsonl").stat().st_mtime_ns

    status, out, err = aim_fast(*study, "--output", tmp_path / "study")
    assert status == 0, err
    assert (tmp_path / "study" / CELLS[0] / "metrics.jsonl").stat().st_mtime_ns == first
    rows = list(csv.DictReader((tmp_path / "study" / "table.csv").open()))
    assert [row["published"] for row in rows] == ["83.3", "83.4", "83.9", "83.8"]
    assert all(0 <= float(row["top1"]) <= 100 for row in rows)
    trained = [int(row["trained"]) for row in rows]
    assert trained == sorted(trained)
    assert rows[0]["seconds"]
    assert not rows[1]["seconds"]
    for name in ("table.txt", "table.json", "table.png"):
        assert (tmp_path / "study" / name).stat().st_size > 100
    assert (tmp_path / "study" / "table.txt").read_text() in out

    broken, whole = tmp_path / "study" / CELLS[1], tmp_path / "whole"
    ratio = ("train", *study[3:], "--adapter-ratio", 1 / 8, "--output", whole)
    assert aim_fast(*ratio)[0] == 0
    assert eval_and_losses(broken) == eval_and_losses(whole)

    saved = json.loads((tmp_path / "study" / "study.json").read_text())
    saved["recipe"] = {name: value for group in saved["recipe"].values() for name, value in group.items()}
    (tmp_path / "study" / "study.json").write_text(json.dumps(saved))  # as it was before recipes had groups
    status, out, err = aim_fast(*study, "--output", tmp_path / "study")
    assert (status, (tmp_path / "study" / "table.txt").read_text() in out) == (0, True), err

    status, _, err = aim_fast(*study, "--lr", 1e-3, "--output", tmp_path / "study")
    assert status == 2
    assert "holds another study (lr: 0.004 -> 0.001)" in err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--study", "rung"), "unknown study 'rung'; did you mean 'rungs'"),
        (("--study", "rungs", "--demo", "--dataset", "ssv2"), "leave --dataset out"),
        (("--study", "rungs", "--seeds", "1,1"), "--seeds '1,1' are not different whole numbers"),
        (("--study", "ratios", "--model", "timesformer_demo"), "timesformer_demo takes no --adapter-ratio"),
        (("--study", "data", "--data-share", 0), "data_share: 0.0 must be above 0"),
        (("--study", "data", "--dataset", "ssv2", "--data-root", "no/where"), "no/where does not exist"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(aim_fast, tmp_path, options, line):
    status, _, err = aim_fast("ablate", *options, "--output", tmp_path / "study", "--quiet")
    assert status == 2
    assert line in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "study").exists()


def test_a_study_without_a_data_set_makes_the_demo_s(aim_fast, tmp_path, monkeypatch):
    from aim_fast.demo import demo_set
    from aim_fast.errors import UsageError

    def stop(folder, *_):
        raise UsageError(f"clips go to {folder}")

    monkeypatch.setattr(demo_set, "make_clips", stop)
    for demo in ((), ("--demo",)):
        status, _, err = aim_fast("ablate", "--study", "ratios", *demo, "--output", tmp_path / "study", "--quiet")
        assert status == 2
        assert f"clips go to {tmp_path / 'study' / 'demo'}" in err
