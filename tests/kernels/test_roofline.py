"""Predictions of a step: held to what a card measured, on the two sides that were counted in its profile."""

import argparse
import json

import pytest

pytest.importorskip("triton")
from bench import roofline
from bench.counted_step import Kernel, count_step
from bench.goals import RESULTS
from bench.gpu_rates import GPUS, LEAST, SHARES

pytestmark = pytest.mark.stack

MEASURED = json.loads((RESULTS / "nvidia-h200-step.json").read_text())
SMALL = {"model": "aim_vit_demo", "frames": 2, "batch": 3}


def kernel(**given):
    return Kernel(
        **{"name": "mm", "own": False, "phase": "forward", "read": 0, "written": 0, "flop": 0, "largest": 1, **given}
    )


def test_the_published_step_takes_as_long_as_it_did_on_a_card():
    found = roofline.predict(count_step(side="published"), GPUS["h200"])
    assert found == pytest.approx(MEASURED["seconds"]["published"], rel=0.1)


def test_a_kernel_is_limited_by_bytes_flops_or_its_launch():
    card = GPUS["h200"]
    assert roofline.seconds(kernel(), card) == LEAST
    moved = roofline.seconds(kernel(read=10**9, own=True), card)
    assert moved == pytest.approx(1e9 / (4.8e12 * SHARES["copy"].value * SHARES["own"].value))
    product = kernel(read=10**9, flop=1e13, product=(1, 1, 1))
    assert roofline.seconds(product, card) == roofline.limits(product, card)["FLOPs"] > moved
    assert roofline.seconds(product, GPUS["a100"]) == pytest.approx(roofline.seconds(product, card) * 989 / 312)


def test_a_product_of_ours_runs_at_a_share_of_the_librarys_rate():
    card = GPUS["h100"]
    library, ours = (kernel(flop=1e12, product=(1, 1, 1), own=own) for own in (False, True))
    assert roofline.seconds(library, card) / roofline.seconds(ours, card) == pytest.approx(SHARES["own product"].value)


def test_short_sequences_cost_a_whole_tile_of_torchs_attention():
    short, tile = (kernel(name="attention", flop=1e12 * n, length=n) for n in (8, 128))
    ratio = roofline.limits(short, GPUS["h200"])["FLOPs"] / roofline.limits(tile, GPUS["h200"])["FLOPs"]
    assert ratio == pytest.approx(16)


@pytest.mark.parametrize("gpu", GPUS)
def test_every_card_is_predicted_with_its_assumptions(gpu, capsys, monkeypatch):
    def counted(model, side, *given):
        return count_step(side=side, own_products=len(given) > 4, **SMALL)

    monkeypatch.setattr(roofline, "count_step", counted)
    options = argparse.Namespace(gpu=gpu, precision="bf16", memory_word="lean", **SMALL)
    results = roofline.run(options)
    printed = capsys.readouterr().out
    assert "not measured" in printed
    assert all(word in printed for word in SHARES)
    assert results["predicted_for"] == GPUS[gpu].name
    assert set(results["seconds"]) == {"published", "fast", "balanced", "lean"}
    assert results["clips_per_s"] == SMALL["batch"] / results["seconds"]["fast"]
    own, share = results["own_products"], SHARES["own product"].value
    assert 0 < own["even_at"] < share  # what a product of ours saves is more than it is assumed to lose
    assert own["seconds"] < results["seconds"]["fast"]
    assert f"gain from {own['even_at']:.2f} of the library's rate" in printed
    times = [row[2] for row in results["kernels"]]
    assert times == sorted(times, reverse=True)
    assert sum(times) == pytest.approx(results["seconds"]["lean"] * 1e3)


def test_a_measured_step_has_its_prediction_beside_it(monkeypatch, capsys):
    monkeypatch.setattr(roofline, "count_step", lambda model, side, *_: count_step(side=side, **SMALL))
    assert roofline.beside(MEASURED, "NVIDIA Something") is None
    found = roofline.beside(MEASURED, "NVIDIA H200")
    captured = MEASURED["seconds"]["fast_captured"]
    assert found["of_measured"]["fast"] == pytest.approx(found["seconds"]["fast"] / captured)
    roofline.print_beside(found)
    assert "of measured" in capsys.readouterr().out
