"""Measuring everything: a part that fails or runs out of time costs no other its figures."""

import argparse
import json

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

from aim_fast.timing import Timing
from aim_kernels import AIMBlock
from bench import __main__ as bench
from bench import methods, profile, step
from bench.attention_backends import named, pin
from bench.published import published


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


@pytest.mark.slow
def test_of_several_batches_each_has_a_file(run_all):
    status, _, folder = run_all([("some", "memory", {**SMALL, "batch": "1,2"})])
    assert status == 0
    for batch in (1, 2):
        assert json.loads((folder / f"some-{batch}.json").read_text())["batch"] == batch


@pytest.mark.parametrize(
    ("program", "precision", "serves"),
    [("step", "bf16", "roofline"), ("memory", "fp8", "step and roofline"), ("all", "fp16", "roofline")],
)
def test_a_precision_that_a_program_has_not_is_refused_in_a_line(monkeypatch, capsys, program, precision, serves):
    monkeypatch.setattr("sys.argv", ["bench", program, "--precision", precision])
    assert bench.main() == 2
    assert capsys.readouterr().err == f"--precision {precision} is for bench {serves}, not for {program}\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--gpu", "a100", "--precision", "fp8"), "the compute capability of an NVIDIA A100 SXM 80 GB is below 8.9"),
        (("--model", "aim_vit_b16_clp"), "aim_vit_b16_clip"),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_a_line(monkeypatch, capsys, options, line):
    pytest.importorskip("triton")
    monkeypatch.setattr("sys.argv", ["bench", "roofline", *options])
    assert bench.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("bench roofline: ")
    assert (line in said, said.count("\n")) == (True, 1)


def test_the_published_structure_drops_token_positions_in_training_alone():
    side = step.make_sides("aim_vit_demo", 2, "cpu")["published"]
    block = side.transformer.resblocks[-1]
    assert block.block.drop_path.rate == pytest.approx(step.DROP_PATH)
    torch.manual_seed(0)
    dropped = block.train()._drop(torch.ones(400, 6, 3))
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert dropped.unique().tolist() == pytest.approx([0, 1.25])
    assert 0.7 < (dropped > 0).float().mean() < 0.9
    assert torch.equal(block.eval()._drop(dropped), dropped)
    assert not any(part.training for part in published(torch.nn.Sequential(AIMBlock(8, 2)).eval()).modules())


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


def test_the_published_step_names_the_attention_that_it_is_pinned_to(capsys):
    side = step.make_sides("aim_vit_demo", 2, "cpu")["published"]
    choice = {"time": SDPBackend.MATH, "space": SDPBackend.FLASH_ATTENTION}
    asked = []

    class Asked(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.nn.functional.scaled_dot_product_attention:
                asked.append([b for b in choice.values() if b in torch.nn.attention._cur_sdpa_kernel_backends()])
            return func(*args, **(kwargs or {}))

    clips = torch.zeros(1, 2, side.img_size, side.img_size, 3, dtype=torch.uint8)
    with Asked():
        pin(side, choice)(clips)
    assert asked == [[SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION]] * len(side.transformer.resblocks)
    results = {"model": "m", "saved_mib_per_clip": {}, "attention": {"published": named(choice)}}
    step._print(results, {"fast": Timing([1.0, 1.0])})
    printed = capsys.readouterr().out
    assert "attention of published, compiled or not: math over time, flash_attention over space" in printed


@pytest.mark.slow
def test_every_method_of_a_trunk_has_its_time_and_memory_beside_aims():
    found = methods.run(argparse.Namespace(device="cpu", model="vit_demo", frames=2, batch=2))
    assert found["methods"]["aim"]["speed_of_aim"] == found["methods"]["aim"]["memory_of_aim"] == 1
    assert found["methods"]["probe"]["memory_of_aim"] < 0.1  # its head alone
    assert found["methods"].keys() >= {"evl", "st_adapter", "lora", "x_clip", "dist"}
    assert not found["refused"]
