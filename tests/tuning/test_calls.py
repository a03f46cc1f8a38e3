"""The calls of a step, found without running it, are those that running it makes."""

import json
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aim_fast.models.registry import create_model
from aim_fast.tuning.calls import Call, Layout, calls_of_step, decoded, encoded
from aim_fast.tuning.operands import Standard, checked_rows, make_operands
from aim_kernels.registration import OPERATORS


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.shapes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aim":
            self.shapes[func._opname, tuple(tuple(x.shape) for x in args if isinstance(x, torch.Tensor))] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def step():
    """A model, the losses of a step, and its clips."""
    torch.manual_seed(0)
    model = create_model("aim_vit_b16_clip", depth=2, img_size=32, num_frames=2, num_classes=3, drop_path=0.2).train()

    def losses(frames):
        with torch.autocast("cpu", torch.bfloat16):
            return model(frames).float().square()

    return model, losses, torch.zeros(2, 2, 32, 32, 3, dtype=torch.uint8)


def test_a_step_without_data_makes_the_calls_of_a_step_with_data(step):
    model, losses, frames = step
    state = torch.get_rng_state()
    found = calls_of_step(model, losses, [frames])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    with Seen() as seen:
        losses(frames).sum().backward()
    model.zero_grad()
    shapes = Counter()
    for call, count in found.items():
        shapes[call.operator, tuple(x.shape for x in call.operands if isinstance(x, Layout))] += count
    assert shapes == seen.shapes
    assert {"temporal_attention_backward", "spatial_attention", "layer_norm"} <= {call.operator for call in found}


def test_calls_are_kept_as_json(step):
    for call in calls_of_step(step[0], step[1], [step[2]]):
        assert decoded(json.loads(json.dumps(encoded(call)))) == call


def test_every_operator_with_a_kernel_can_be_called_on_made_operands_and_is_right(step):
    """The operators' own CPU implementations and their plain forms are held to what a tuning holds kernels to."""
    for call in calls_of_step(step[0], step[1], [step[2]]):
        operands = make_operands(call, torch.device("cpu"), checked_rows(call))
        standard, operator = Standard(call, operands), OPERATORS[call.operator]
        for results in (operator(*operands), operator.run("reference", *operands)):
            assert (verdict := standard.judge(results)).fault is None, (call, verdict)


def packed_calls(rows=512, width=64):
    """The join of two sub-blocks and its way back, as a step on a GPU has them: see aim_kernels.packed."""
    high, wide, code = (
        Layout((rows, width), (width, 1), dtype) for dtype in (torch.bfloat16, torch.float32, torch.int8)
    )
    row, column = Layout((rows,), (1,), torch.float32), Layout((width,), (1,), torch.float32)
    asked = (column, column, 1e-5, torch.bfloat16, None, True, None)
    return [
        Call("residual_norm", (wide, high, None, None, *asked, None, None, None, True)),
        Call("residual_norm", (high, high, row, None, *asked, code, row, row, True)),
        Call("residual_norm", (high, high, row, column, *asked, code, row, row, False)),
        *(
            Call("residual_norm_backward", (high, high, column, None, row, g, None, *how, True, None, low, packed))
            for how in ((torch.bfloat16, True, True), (torch.bfloat16, False, False))
            for g, low, packed in ((wide, None, True), (high, code, True), (high, code, False))
        ),
    ]


@pytest.mark.parametrize("number", range(9))
def test_a_packed_stream_is_held_by_its_value(number):
    call = packed_calls()[number]
    operands = make_operands(call, torch.device("cpu"), checked_rows(call))
    standard, packs = Standard(call, operands), call.operands[-1]
    low, high, *others = OPERATORS[call.operator].run("reference", *operands)
    assert (verdict := standard.judge((low, high, *others))).fault is None, verdict
    if packs:
        assert standard.judge((torch.full_like(low, 127), high, *others)).fault is not None
        # half a step below the next number in bfloat16, or as much above the one below it
        tie = low == 127
        assert tie.any()
        over = (high.view(torch.int16) + 1).view(torch.bfloat16)
        beside = (torch.where(tie, -128, low.int()).to(torch.int8), torch.where(tie, over, high))
        assert (verdict := standard.judge((*beside, *others))).fault is None, verdict


def test_a_result_that_wide_operands_do_without_is_held_to_its_cast():
    """The gradient of a branch, which is that of the sum where both have one dtype."""
    rows, width, hidden = 256, 64, 32
    wide = Layout((rows, width), (width, 1), torch.float32)
    shapes = ((rows, hidden), (hidden, width), (width, hidden))
    narrow, w1, w2 = (Layout(shape, (shape[1], 1), torch.bfloat16) for shape in shapes)
    call = Call("adapter_backward", (wide, narrow, w1, w2, False, 1.0, None, True))
    operands = make_operands(call, torch.device("cpu"), checked_rows(call))
    standard = Standard(call, operands)
    *others, branch = OPERATORS[call.operator].run("reference", *operands)
    assert branch.dtype == torch.bfloat16
    assert standard.judge((*others, branch)).fault is None
    assert standard.judge((*others, branch * 1.01)).fault is not None


def test_a_step_that_looks_at_values_says_so(step):
    with pytest.raises(Exception, match="_local_scalar_dense"):
        calls_of_step(step[0], lambda frames: step[1](frames) * frames.sum().item(), [step[2]])


@pytest.mark.parametrize(
    ("rows", "inner", "checked"), [(50432, (), 256), (50433, (), 257), (32, (8, 197), 2), (3, (8, 197), 1)]
)
def test_what_is_checked_is_as_divisible_as_all_of_it(rows, inner, checked):
    shape = (rows, *inner, 768)
    assert checked_rows(Call("layer_norm", (Layout(shape, (1,) * len(shape), torch.bfloat16),))) == checked
