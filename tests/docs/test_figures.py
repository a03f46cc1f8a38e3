"""The README's table and pictures say what was measured, counted and published."""

import json
import re
from pathlib import Path

import pytest

from aim_fast.models.counting.flops import count_costs
from aim_fast.models.published import dataset_arguments, find_published
from docs.figures import method, step
from docs.figures.palette import PALETTES, write_both

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SPEED = (ROOT / "docs/speed.md").read_text()
MODELS = ("aim_vit_b16_clip", "aim_vit_l14_clip")
MEMORY = ("fast", "balanced", "lean")


def results(name: str) -> dict:
    return json.loads((ROOT / "bench/results" / name).read_text())


def cells(page: str, row: str) -> list[str]:
    """The cells of the table row that begins so."""
    line = re.search(rf"^\| {re.escape(row)}.*$", page, re.MULTILINE)[0]
    return [cell.strip() for cell in line.strip("|").split(" | ")][1:]


def shares(values: dict) -> str:
    return "{:.2f}, {:.2f} or {:.2f}".format(*(values[word] / values["published"] for word in MEMORY))


@pytest.mark.parametrize(
    ("row", "dataset"), [("top-1 on Kinetics-400", "kinetics400"), ("top-1 on Something-Something v2", "ssv2")]
)
def test_the_tables_accuracies_are_the_published_ones(row, dataset):
    for cell, model in zip(cells(README, row), MODELS, strict=True):
        found = find_published(model, dataset, {**dataset_arguments(model, dataset), "num_frames": 8})
        assert cell == f"{found.top1}, published"


@pytest.mark.parametrize(
    ("row", "dataset"),
    [("trained values, Kinetics-400", "kinetics400"), ("trained values, Something-Something v2", "ssv2")],
)
def test_the_tables_parameters_are_counted(row, dataset):
    for cell, model in zip(cells(README, row), MODELS, strict=True):
        params, trained, _ = count_costs(model, {**dataset_arguments(model, dataset), "num_frames": 8})
        assert cell == f"{trained / 1e6:.1f} M of {params / 1e6:.1f} M, counted"


def test_the_tables_costs_are_those_in_bench_results():
    found = results("cpu-2-cores-step.json")
    assert (found["model"], found["frames"], found["device"]) == (MODELS[0], 8, "cpu")
    kept, seconds = cells(README, "kept for backward"), cells(README, "time of a training step")
    assert kept[0].startswith(shares(found["saved_mib_per_clip"]) + " ¹, measured")
    assert seconds[0].startswith(shares(found["seconds"]) + " ¹, measured")
    assert kept[1] == seconds[1] == "unmeasured"


def test_the_page_on_speed_says_what_was_measured():
    page, found = SPEED[SPEED.index("## A training step on CPUs") :], results("cpu-2-cores-step.json")
    titles = {
        "published": "published structure, plain PyTorch",
        "published_compiled": "the same, compiled",
        "reference": "this model in plain PyTorch",
        **{word: f"`--memory {word}`" for word in MEMORY},
    }
    for side, title in titles.items():
        seconds, of_published, kept, share = cells(page, title)
        assert seconds == f"{found['seconds'][side]:.2f} ±{found['spread'][side]:.0%}".replace("%", " %")
        assert float(of_published) == pytest.approx(found["seconds"][side] / found["seconds"]["published"], abs=0.005)
        if side in found["saved_mib_per_clip"]:
            mib = found["saved_mib_per_clip"]
            assert kept == f"{mib[side]:.0f}"
            assert float(share) == pytest.approx(mib[side] / mib["published"], abs=0.005)
        else:
            assert kept == "unmeasured"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_bars_are_drawn_from_the_results_that_are_committed(theme):
    drawn = re.findall(r"<!-- (.+?) -->", (ROOT / f"docs/figures/step-{theme}.svg").read_text())
    found = results("cpu-2-cores-step.json")
    for side in step.SIDES:
        assert any(text.startswith(f"{found['seconds'][side]:.2f} s") for text in drawn)
    for side in MEMORY:
        assert any(text.startswith(f"{found['saved_mib_per_clip'][side]:.0f} MiB") for text in drawn)


def test_a_bar_is_as_long_as_what_it_stands_for():
    given = {"seconds": {"published": 2.0, "fast": 1.0}, "spread": {"published": 0.0, "fast": 0.0}}
    figure = step.draw(PALETTES["light"], {**given, "saved_mib_per_clip": {"published": 8.0, "lean": 2.0}})
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [2.0, 1.0]
    assert [bar.get_width() for bar in right.patches] == [8.0, 2.0]
    assert [text.get_text() for text in right.texts].count("unmeasured") == 3


@pytest.mark.parametrize("drawing", [method, step])
def test_a_script_draws_the_committed_picture_again(drawing, tmp_path):
    """Of its words and their number, not of its bytes: those hang on matplotlib's version."""
    name = drawing.__name__.split(".")[-1]
    write_both(drawing.draw, tmp_path, name)
    for theme in ("light", "dark"):
        new, committed = (folder / f"{name}-{theme}.svg" for folder in (tmp_path, ROOT / "docs/figures"))
        words = [re.findall(r"<!-- (.+?) -->", file.read_text()) for file in (new, committed)]
        assert words[0] == words[1]


def test_the_figures_of_a_gpu_are_the_measured_ones():
    found = results("nvidia-h200-step.json")
    speed, times = found["captured"]["clips_per_s"], found["captured"]["ratio_vs_published_eager"]
    peak = {side: f"{mib * 2**20 / 1e9:.1f}" for side, mib in found["peak_mib"].items()}
    peaks = "{}, {} or {} GB ¹".format(*(peak[word] for word in MEMORY))
    cell = f"{speed:.0f} clips/s, {times:.2f} times published; at most {peaks}"
    assert cells(README, "a training step of 32 clips on an NVIDIA H200") == [cell, "unmeasured"]
    titles = {
        "published": "published structure, plain PyTorch",
        "published_best": "the same with torch's fastest attention",
        "reference": "this model in plain PyTorch",
        "fast_captured": "`--memory fast`, captured",
        **{word: f"`--memory {word}`, launched by Python" for word in MEMORY},
    }
    for side, title in titles.items():
        ms, clips, faster, highest = cells(SPEED, title)
        seconds = found["seconds"][side]
        assert float(ms.split(" ")[0]) == pytest.approx(seconds * 1e3, abs=0.5)
        assert float(clips) == pytest.approx(found["batch"] / seconds, abs=0.5)
        assert float(faster) == pytest.approx(found["seconds"]["published"] / seconds, abs=0.006)
        assert highest == peak.get(side, "unmeasured")
