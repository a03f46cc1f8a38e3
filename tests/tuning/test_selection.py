"""Candidates that are planted wrong, or do not run, are left out with their figure; the fastest right one is taken."""

from collections import Counter

import pytest
import torch

from aim_fast.errors import UsageError
from aim_fast.tuning import operands, selection, tuning
from aim_fast.tuning.calls import Call, Layout
from aim_fast.tuning.operands import checked_rows
from aim_fast.tuning.record import content_of_shapes, shapes_of
from aim_fast.tuning.selection import PLAIN, Choice, Selection, Tried, named
from aim_fast.tuning.tuning import check_backends, enter, tune
from aim_kernels import AIMBlock, AIMSwinBlock, spatial_attention, wide_product, wide_product_triton
from aim_kernels.block_shapes import CHOSEN, LIBRARY, BlockShape, Launch, block_shape, candidates, committed
from aim_kernels.layer_norm import layer_norm_reference
from aim_kernels.registration import OPERATORS
from aim_kernels.scaled_rows import EIGHT_BITS
from tests.tuning.conftest import LAUNCH, SHAPES, norm_call

CPU = torch.device("cpu")


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


def runs_plain(ran):
    """Whether the layer norm leaves the planted kernel alone, for a number of rows of its own."""
    before = len(ran)
    x, weight, bias = torch.randn(8, 40).bfloat16(), torch.rand(40), torch.rand(40)
    got = OPERATORS["layer_norm"](x, weight, bias, 1e-5, torch.bfloat16)
    torch.testing.assert_close(got, layer_norm_reference(x, weight, bias, 1e-5, torch.bfloat16))
    return len(ran) == before


def test_the_fastest_of_those_that_are_right_is_taken(planted):
    planted({SHAPES[1]: "wrong", SHAPES[2]: "refuses", SHAPES[3]: "writes nothing"})
    clock = Clock({name(shape): 0.1 for shape in SHAPES[1:4]} | {name(SHAPES[4]): 0.5, name(SHAPES[5]): 0.7})
    choice = Selection(CPU, clock).choose(norm_call())
    assert (choice.implementation, choice.shapes) == ("triton", {LAUNCH: SHAPES[4]})
    assert clock.timed == [["committed", name(SHAPES[4]), name(SHAPES[5])], [name(SHAPES[4]), PLAIN]]
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
    assert runs_plain(ran)


def test_a_kernel_is_chosen_for_the_largest_call_and_checked_in_the_others(planted):
    ran = planted({})
    clock = Clock({name(SHAPES[2]): 0.5})
    selection = Selection(CPU, clock)
    large, small = norm_call(900), norm_call(500)
    assert [selection.choose(call).shapes for call in (large, small)] == [{LAUNCH: SHAPES[2]}] * 2
    assert [PLAIN in names for names in clock.timed] == [False, True]
    assert ran[-2:] == [SHAPES[0], SHAPES[2]]


def test_plain_torch_is_taken_where_it_is_faster_than_the_fastest_kernel(planted):
    ran = planted({})
    clock = Clock({name(SHAPES[2]): 0.5, PLAIN: 0.4})
    made = tune(Counter([norm_call()]), CPU, choose=lambda calls, *_: ([Selection(CPU, clock).choose(*calls)], []))
    choice = made.choices[norm_call()]
    assert (choice.name, choice.taken.seconds, choice.lines, choice.failed) == (PLAIN, 0.4, [], {})
    assert made.summary.endswith("1 changed (1 to plain torch), 60% of their time saved")
    assert runs_plain(ran)
    again = tune(Counter([norm_call()]), CPU)
    assert (again.new, again.lines, again.choices) == (0, [], made.choices)


def test_plain_torch_that_is_no_faster_than_the_fastest_kernel_is_shown_and_left(planted):
    planted({})
    choice = Selection(CPU, Clock({name(SHAPES[2]): 0.5, PLAIN: 0.495})).choose(norm_call())
    assert choice.shapes == {LAUNCH: SHAPES[2]}
    assert (choice.implementation, choice.tried[-1].name, choice.tried[-1].seconds) == ("triton", PLAIN, 0.495)


def test_plain_torch_without_room_on_all_rows_is_left_out_alone(planted, monkeypatch):
    def reference(x, *others):
        if x.shape[0] > checked_rows(norm_call()):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return layer_norm_reference(x, *others)

    planted({})
    monkeypatch.setattr(OPERATORS["layer_norm"], "reference", reference)
    clock = Clock({PLAIN: 0.1, name(SHAPES[1]): 0.5})
    choice = Selection(CPU, clock).choose(norm_call())
    assert choice.shapes == {LAUNCH: SHAPES[1]}
    assert clock.timed == [[name(shape) for shape in SHAPES]]
    assert choice.lines == [f"layer_norm: {PLAIN}: OutOfMemoryError: CUDA out of memory"]
    assert choice.failed.keys() == {"reference"}


def test_with_room_for_the_checked_rows_alone_kernels_are_timed_on_them_and_plain_torch_is_not(planted, monkeypatch):
    def make(call, device, rows=None):
        if rows is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return operands.make_operands(call, device, rows)

    planted({})
    monkeypatch.setattr(selection, "make_operands", make)
    clock = Clock({PLAIN: 0.1, name(SHAPES[1]): 0.5})
    choice = Selection(CPU, clock).choose(norm_call())
    assert (choice.shapes, choice.lines) == ({LAUNCH: SHAPES[1]}, [])
    assert clock.timed == [[name(shape) for shape in SHAPES]]


@pytest.mark.parametrize(
    ("large", "small", "plain"),
    [("triton", "reference", False), ("reference", "triton", True), ("triton", "wrong", True)],
)
def test_the_largest_call_decides_for_any_number_of_rows_unless_it_is_wrong_for_some(
    large, small, plain, planted, monkeypatch
):
    ran, calls = planted({}), (norm_call(900), norm_call(500))
    monkeypatch.setattr(OPERATORS["layer_norm"], "cpp", OPERATORS["layer_norm"].triton)  # what runs by rule on a CPU
    right, wrong = Tried("committed"), Tried("committed", fault="error 0.3, plain torch loses 0.002")
    found = Choice(calls[1], "reference", tried=[wrong]) if small == "wrong" else Choice(calls[1], small, tried=[right])
    enter([Choice(calls[0], large, tried=[right]), found], CPU)
    assert runs_plain(ran) == plain


def test_what_is_taken_for_the_largest_call_is_checked_and_not_timed_in_the_others(planted):
    planted({})
    clock = Clock({PLAIN: 0.5})
    selection = Selection(CPU, clock)
    assert [selection.choose(norm_call(rows)).name for rows in (900, 500)] == [PLAIN, PLAIN]
    assert len(clock.timed) == 2


def test_a_candidate_that_ended_a_process_is_not_tried_again(planted):
    ran = planted({})
    call, announced = norm_call(), []
    Selection(CPU, Clock(), announce=announced.append).choose(call)
    ran.clear()
    choice = Selection(CPU, Clock(), skip=announced[1:2]).choose(call)
    assert SHAPES[1] not in ran
    assert choice.tried[1].fault == "ended the process that tried it"


def test_attention_within_groups_that_failed_here_is_refused_for_its_own_blocks_alone(monkeypatch):
    monkeypatch.setattr(spatial_attention, "architecture_of", lambda device: 90)
    monkeypatch.setattr(tuning, "architecture_of", lambda device: 90)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Card")
    call = Call("group_attention", (_layout(2, 8, 96), _layout(2, 4, dtype=torch.int32), _layout(1, 2, 4, 4), 2))
    fault = "error 0.3, plain torch loses 0.002"
    enter([Choice(call, "reference", tried=[Tried("committed", fault=fault)])], torch.device("cuda", 0))
    swin, vit = AIMSwinBlock(32, 2, 4, 4, window_size=2), AIMBlock(32, 2)
    for backend in ("auto", "triton"):
        swin.attention_backend = vit.attention_backend = backend
        check_backends(vit, torch.device("cuda", 0))
        if backend == "auto":
            check_backends(swin, torch.device("cuda", 0))
    with pytest.raises(UsageError, match=rf"attention_backend: backend triton failed its check on Some Card: {fault}"):
        check_backends(swin, torch.device("cuda", 0))


def _layout(*shape, dtype=torch.bfloat16):
    return Layout(shape, torch.empty(shape, device="meta").stride(), dtype)


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
    monkeypatch.setattr(tuning, "architecture_of", lambda device: 90)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    check_backends(model, card)
    model[0].attention_backend = "sdpa"
    with pytest.raises(UsageError, match=r"error 0\.3"):
        check_backends(model, card)


SCALED_OPERANDS = (
    _layout(300, 32, dtype=EIGHT_BITS),
    _layout(300, 1, dtype=torch.float32),
    _layout(48, 32, dtype=EIGHT_BITS),
    _layout(48, 1, dtype=torch.float32),
    _layout(2, dtype=torch.float32),
)
SCALED = (
    Call("scaled_rows", (_layout(300, 48), EIGHT_BITS)),
    Call("scaled_norm", (_layout(300, 48), _layout(48), _layout(48), 1e-5, EIGHT_BITS, torch.bfloat16, True, True)),
    Call("scaled_wide_product", (*SCALED_OPERANDS, _layout(48), "quick_gelu", True)),
    Call("scaled_wide_product_backward", (*SCALED_OPERANDS, _layout(300, 48, dtype=torch.uint8), torch.bfloat16)),
)


@pytest.mark.parametrize("call", SCALED, ids=lambda call: call.operator)
@pytest.mark.parametrize("wrong", [False, True])
def test_what_writes_eight_bits_is_checked_like_the_others(call, wrong, monkeypatch):
    operator = OPERATORS[call.operator]

    def run(*operands):
        values, scale, *others = operator.reference(*operands)
        return values, scale * (1.01 if wrong else 1.0), *others

    monkeypatch.setattr(operator, "triton", run)
    made = tune(Counter([call]), CPU, choose=lambda calls, *_: ([Selection(CPU, Clock()).choose(c) for c in calls], []))
    choice = made.choices[call]
    assert choice.implementation == ("reference" if wrong else "triton")
    assert ("plain torch loses" in choice.lines[0]) if wrong else not choice.lines
    assert (choice.tried[-1].name, choice.tried[-1].fault) == (PLAIN, None)


def test_chosen_shapes_are_what_a_launch_gets(planted):
    planted({})
    enter([Selection(CPU, Clock({name(SHAPES[2]): 0.5})).choose(norm_call())], CPU)
    assert {LAUNCH: SHAPES[2]} == CHOSEN
    ran = planted({})
    OPERATORS["layer_norm"].triton(torch.randn(8, 40).bfloat16(), torch.rand(40), torch.rand(40), 1e-5, torch.bfloat16)
    assert ran == [SHAPES[2]]


@pytest.fixture
def product_call(monkeypatch):
    """A call of the product before an activation, whose kernels are planted, but for the shapes that they ask for."""

    def apart(*operands):
        block_shape("wide_slope_forward", 48, 0, entry="wide_activation")
        return wide_product.wide_product_reference(*operands)

    def within(*operands):
        return wide_product.wide_product_reference(*operands[:-1])

    monkeypatch.setattr(wide_product, "_apart", apart)
    monkeypatch.setattr(wide_product_triton, "forward", within)
    y, weight, bias = ((600, 40), (40, 1)), ((48, 40), (40, 1)), ((48,), (1,))
    layouts = (Layout(*x, torch.bfloat16) for x in (y, weight, bias))
    return Call("wide_product", (*layouts, 32, "quick_gelu", None, True))


PRODUCT = Launch("wide_product_forward", 48, 0, 2, 0, "wide_product")
PASS = Launch("wide_slope_forward", 48, 0, 2, 0, "wide_activation")


def test_a_product_with_its_pass_within_is_taken_where_it_is_faster(product_call):
    tile, clock = candidates(PRODUCT)[2], Clock({named({PRODUCT: candidates(PRODUCT)[2]}): 0.5})
    choice = Selection(CPU, clock).choose(product_call)
    assert choice.shapes == {PRODUCT: tile}
    assert [list(map(len, clock.timed)), clock.timed[1][1]] == [[len(candidates(PRODUCT)), 2], PLAIN]  # and no pass
    assert shapes_of(content_of_shapes(choice.shapes)) == choice.shapes
    enter([choice], CPU)
    assert wide_product.product_shape("forward", torch.empty(2, 40).bfloat16(), 48, 32) == tile


def test_a_library_keeps_the_product_where_it_is_faster_and_its_pass_is_tried(product_call):
    quick = candidates(PASS)[1]
    tiles = {named({PRODUCT: tile}): 0.99 for tile in candidates(PRODUCT)[1:]}
    choice = Selection(CPU, Clock(tiles | {named({PASS: quick}): 0.5})).choose(product_call)
    assert choice.shapes == {PRODUCT: LIBRARY, PASS: quick}
    assert shapes_of(content_of_shapes(choice.shapes)) == choice.shapes
    with pytest.raises(ValueError, match="four numbers above 0"):
        shapes_of(content_of_shapes({PASS: quick._replace(rows=0)}))


def test_every_candidate_serves_the_sizes_that_the_committed_shape_serves():
    assert all(isinstance(shape, BlockShape) and min(shape) > 0 for shape in SHAPES)
    assert SHAPES[0] == committed(LAUNCH)
    assert len(SHAPES) == len(set(SHAPES)) > 3
    assert 0 < selection.WORTH < 0.1
