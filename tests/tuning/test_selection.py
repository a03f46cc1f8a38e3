"""Candidates that are planted wrong, or do not run, are left out with their figure; the fastest right one is taken."""

import pytest
import torch

from aim_fast.tuning import selection
from aim_fast.tuning.calls import Call, Layout
from aim_fast.tuning.selection import Selection, named
from aim_fast.tuning.tuning import check_backends, enter
from aim_kernels import spatial_attention
from aim_kernels.block_shapes import CHOSEN, BlockShape, Launch, candidates, committed
from aim_kernels.layer_norm import layer_norm_reference
from aim_kernels.registration import OPERATORS
from tests.tuning.conftest import norm_call

CPU = torch.device("cpu")
LAUNCH = Launch("layer_norm_forward", 40, 0, 2, 0, "layer_norm")
SHAPES = candidates(LAUNCH)


class Clock:
    """Seconds by name, 1 for the others; what was timed."""

    def __init__(self, seconds=None):
        self.seconds, self.timed = seconds or {}, []

    def __call__(self, functions):
        for function in functions.values():
            function()
        self.timed.append(list(functions))
        return {name: self.seconds.get(name, 1.0) for name in functions}


def name(shape):
    return named({LAUNCH: shape})


def test_the_fastest_of_those_that_are_right_is_taken(planted):
    planted({SHAPES[1]: "wrong", SHAPES[2]: "refuses", SHAPES[3]: "writes nothing"})
    clock = Clock({name(shape): 0.1 for shape in SHAPES[1:4]} | {name(SHAPES[4]): 0.5, name(SHAPES[5]): 0.7})
    choice = Selection(CPU, clock).choose(norm_call())
    assert (choice.implementation, choice.shapes) == ("triton", {LAUNCH: SHAPES[4]})
    assert clock.timed == [["committed", name(SHAPES[4]), name(SHAPES[5])]]
    assert (choice.default.seconds, choice.taken.seconds) == (1.0, 0.5)
    wrong, refuses, nothing = (next(x for x in choice.tried if x.name == name(shape)) for shape in SHAPES[1:4])
    assert wrong.error == pytest.approx(0.01, rel=0.2)
    assert "plain torch loses" in wrong.fault
    assert "Required: 300000" in refuses.fault
    assert "nan" in nothing.fault
    assert len(choice.lines) == 3


def test_a_gain_that_is_noise_changes_nothing(planted):
    planted({})
    choice = Selection(CPU, Clock({name(SHAPES[1]): 0.99})).choose(norm_call())
    assert (choice.name, choice.shapes) == ("committed", {LAUNCH: committed(LAUNCH)})


@pytest.mark.parametrize("way", ["wrong", "refuses"])
def test_committed_shapes_that_are_wrong_give_way_to_any_that_are_right(way, planted):
    planted({SHAPES[0]: way, SHAPES[2]: "wrong"})
    choice = Selection(CPU, Clock({name(SHAPES[3]): 0.8})).choose(norm_call())
    assert choice.shapes == {LAUNCH: SHAPES[3]}


def test_where_no_kernel_is_right_plain_torch_runs_from_then_on(planted):
    ran = planted(dict.fromkeys(SHAPES, "wrong"))
    call = norm_call()
    choice = Selection(CPU, Clock()).choose(call)
    assert choice.implementation == "reference"
    assert "plain torch runs in its place" in choice.lines[-1]
    enter([choice], CPU)
    operator = OPERATORS["layer_norm"]
    before = len(ran)
    x, weight, bias = torch.randn(8, 40).bfloat16(), torch.rand(40), torch.rand(40)  # another number of rows
    got = operator(x, weight, bias, 1e-5, torch.bfloat16)
    assert operator.chosen[operator.shape_class(x, weight, bias, 1e-5, torch.bfloat16)] == "reference"
    torch.testing.assert_close(got, layer_norm_reference(x, weight, bias, 1e-5, torch.bfloat16))
    assert len(ran) == before


def test_a_kernel_is_chosen_for_the_largest_call_and_checked_in_the_others(planted):
    ran = planted({})
    clock = Clock({name(SHAPES[2]): 0.5})
    selection = Selection(CPU, clock)
    large, small = norm_call(900), norm_call(500)
    assert [selection.choose(call).shapes for call in (large, small)] == [{LAUNCH: SHAPES[2]}] * 2
    assert len(clock.timed) == 1
    assert ran[-2:] == [SHAPES[0], SHAPES[2]]


def test_a_candidate_that_ended_a_process_is_not_tried_again(planted):
    ran = planted({})
    call, announced = norm_call(), []
    Selection(CPU, Clock(), announce=announced.append).choose(call)
    ran.clear()
    choice = Selection(CPU, Clock(), skip=announced[1:2]).choose(call)
    assert SHAPES[1] not in ran
    assert choice.tried[1].fault == "ended the process that tried it"


def attention_call():
    return Call("spatial_attention", (Layout((2, 2, 9, 96), (1728, 864, 96, 1), torch.float16), 2, "auto", None))


def test_libraries_are_candidates_where_the_backend_is_left_open(monkeypatch):
    def attend(factor, qkv, heads, backend, bias):
        ran.append(backend)
        out, lse = spatial_attention.spatial_attention_reference(qkv, heads, bias)
        return out * factor, lse

    ran = []
    operator = OPERATORS["spatial_attention"]
    monkeypatch.setattr(operator, "triton", lambda *x: attend(1, *x))
    libraries = {"sdpa": lambda *x: attend(2, *x), "cudnn": lambda *x: attend(1, *x)}
    monkeypatch.setattr(operator, "libraries", libraries)
    call = attention_call()
    choice = Selection(CPU, Clock({"cudnn": 0.5, "sdpa": 0.1})).choose(call)
    assert choice.name == "cudnn"
    enter([choice], CPU)
    ran.clear()
    qkv = torch.randn(3, 2, 9, 96).half()
    operator(qkv, 2, "auto", None)
    assert ran == ["auto"]  # the library, handed the operands as they are
    operator(qkv, 2, "reference", None)
    assert len(ran) == 1
    assert spatial_attention.FAILED.keys() == {(0, "sdpa")}
    assert spatial_attention.FAILED[0, "sdpa"].startswith("error 1, plain torch loses")


def test_a_forced_backend_that_failed_here_is_refused_with_its_figure(monkeypatch):
    monkeypatch.setattr(spatial_attention, "architecture_of", lambda device: 90)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Card")
    spatial_attention.FAILED[90, "sdpa"] = "error 0.3, plain torch loses 0.002"
    card = torch.device("cuda", 0)
    refusal = "backend sdpa failed its check on Some Card: error 0.3, plain torch loses 0.002; use auto"
    assert spatial_attention.backend_missing("sdpa", card) == refusal
    assert spatial_attention.backend_missing("cudnn", card) is None
    assert spatial_attention.backend_missing("sdpa", CPU) != refusal
    from aim_fast.errors import UsageError
    from aim_fast.tuning import tuning

    monkeypatch.setattr(tuning, "architecture_of", lambda device: 90)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    check_backends(model, card)
    model[0].attention_backend = "sdpa"
    with pytest.raises(UsageError, match=r"error 0\.3"):
        check_backends(model, card)


def test_chosen_shapes_are_what_a_launch_gets(planted):
    planted({})
    enter([Selection(CPU, Clock({name(SHAPES[2]): 0.5})).choose(norm_call())], CPU)
    assert {LAUNCH: SHAPES[2]} == CHOSEN
    ran = planted({})
    OPERATORS["layer_norm"].triton(torch.randn(8, 40).bfloat16(), torch.rand(40), torch.rand(40), 1e-5, torch.bfloat16)
    assert ran == [SHAPES[2]]


def test_every_candidate_serves_the_sizes_that_the_committed_shape_serves():
    assert all(isinstance(shape, BlockShape) and min(shape) > 0 for shape in SHAPES)
    assert SHAPES[0] == committed(LAUNCH)
    assert len(SHAPES) == len(set(SHAPES)) > 3
    assert 0 < selection.WORTH < 0.1
