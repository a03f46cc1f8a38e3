"""Measuring everything: a part that fails or runs out of time costs no other its figures."""

import argparse
import json

import pytest

from bench import __main__ as bench
from bench import profile, step


@pytest.fixture
def run_all(monkeypatch, tmp_path, capfd):
    """``run(runs, *options)``: `python -m bench` with these programs; status, what it printed, and its folder."""

    def run(runs, *options):
        monkeypatch.setattr(bench, "runs", lambda _: iter(runs))
        monkeypatch.setattr("sys.argv", ["bench", "--out", str(tmp_path), *options])
        return bench.main(), capfd.readouterr().err, tmp_path

    return run


SMALL = {"device": "cpu", "model": "aim_vit_demo", "frames": 2}


@pytest.mark.slow
def test_a_failing_program_leaves_the_others_theirs(run_all):
    runs = [("first", "memory", {**SMALL, "model": "none"}), ("second", "memory", SMALL)]
    status, printed, folder = run_all(runs)
    assert status == 1
    assert "bench first failed" in printed
    assert not (folder / "first.json").exists()
    assert json.loads((folder / "second.json").read_text())["saved_mib_per_clip"]["fast"] > 0
    assert (folder / "goals.json").exists()


def test_what_there_is_no_time_for_is_left_out(run_all):
    status, printed, folder = run_all([("memory", "memory", SMALL)], "--minutes", "1e-9")
    assert status == 1
    assert "no time is left" in printed
    assert (folder / "goals.json").exists()


def test_a_baseline_that_does_not_run_is_named_and_left_out():
    def broken():
        raise RuntimeError("too small\nmore")

    steps = {"fast": lambda: None, "published": broken}
    assert step.failing(steps) == {"published": "RuntimeError: too small"}
    assert list(steps) == ["fast"]


def test_a_profile_names_the_operators_of_a_step_by_time():
    options = argparse.Namespace(**SMALL, batch=1)
    sides = profile.run(options)["sides"]
    for side in sides.values():
        times = [ms for _, _, ms in side["kernels"]]
        assert times == sorted(times, reverse=True)
        assert 0 < side["busy_ms"] == pytest.approx(sum(times))
    found, plain = ({name for name, _, _ in sides[side]["kernels"]} for side in ("fast", "published"))
    assert any(name.startswith("aim_cpu::attention") for name in found)
    assert not any(name.startswith("aim_cpu::attention") for name in plain)
