"""The products that finish what they sum: tiles that rows, columns and depth do not fill, a split within one and at its
edge, more tiles than programs; read through pointers, and as descriptors from sm_90 up."""

import pytest
import torch

from aim_fast.tuning.calls import Call, Layout
from aim_fast.tuning.selection import Selection
from aim_kernels import error_rule, registration, wide_product_triton
from aim_kernels import wide_product as op
from aim_kernels.block_shapes import BlockShape, Launch, trying
from aim_kernels.joint_adaptation import joint_adaptation
from aim_kernels.weights import AdapterWeights, MLPWeights, NormWeights

pytestmark = pytest.mark.usefixtures("_loops_to_a_tensor")
SHAPE = BlockShape(32, 64, 4, 3)  # in two parts


@pytest.fixture(params=[80, 90])
def target(request, monkeypatch):
    monkeypatch.setattr(wide_product_triton, "architecture", lambda x: request.param)


def values(rows, depth, split, width, dtype):
    torch.manual_seed(0)
    shapes = (rows, depth), (width, depth), (width,), (depth, width), (rows, width - split)
    y, widening, bias, narrowing, own = (torch.randn(*shape) for shape in shapes)
    return [x.to(dtype) for x in (y, 2 * widening / depth**0.5, bias, narrowing / depth**0.5, 2 * own)]


def doubled(operands):
    return [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in operands]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("rows", "depth", "split", "width", "activation", "dropped"),
    [
        (70, 80, 48, 72, "quick_gelu", True),
        (33, 64, 64, 96, "gelu", True),
        (70, 136, 80, 80, "gelu_tanh", False),
        (41, 75, 35, 51, "quick_gelu", True),  # rows that no descriptor serves
    ],
)
def test_forward_and_backward(rows, depth, split, width, activation, dropped, dtype, target):
    y, widening, bias, narrowing, own = values(rows, depth, split, width, dtype)
    factor = torch.tensor([0.0, 1.25]).repeat(rows)[:rows] if dropped else None
    given = (y, widening, bias, split, activation, factor)
    hidden, slope = wide_product_triton.forward(*given, True, SHAPE)
    plain, coded = op.wide_product_reference(*given, True)
    error_rule.hold(hidden, plain, op.wide_product_reference(*doubled(given), True)[0])
    assert (slope.int() - coded.int()).abs().max() <= 1
    alone, none = wide_product_triton.forward(*given, False, SHAPE)
    assert torch.equal(alone, hidden)
    assert none.shape == (0,)
    beside = torch.cat([narrowing, narrowing], 1)[:, :width]  # as a stack of all blocks' weights has it
    given = (y, beside, coded, own, factor)
    plain, truth = (op.wide_product_backward_reference(*x) for x in (given, doubled(given)))
    error_rule.hold(wide_product_triton.backward(*given, SHAPE), plain, truth)


def test_what_is_no_number_stays(target):
    y, widening, bias, narrowing, own = values(40, 64, 64, 80, torch.float16)
    y[3, 5] = torch.nan
    hidden, slope = wide_product_triton.forward(y, widening, bias, 64, "quick_gelu", None, True, SHAPE)
    assert hidden[3].isnan().all()
    assert (slope[3] == 255).all()
    assert not hidden[4].isnan().any()
    du = wide_product_triton.backward(torch.ones_like(y), narrowing, slope, own, None, SHAPE)
    assert du[3, :64].isnan().all()
    assert not du[3, 64:].isnan().any()


def test_matrices_that_the_hardware_copies_have_rows_16_bytes_apart():
    x = torch.empty(4, 24, dtype=torch.float16)
    assert wide_product_triton.described([x, torch.empty(4, 16, dtype=torch.uint8)], 90)
    assert not wide_product_triton.described([x], 89)
    shifted = torch.empty(97, dtype=torch.float16)[1:].view(4, 24)
    for other in (torch.empty(4, 20, dtype=torch.float16), torch.empty(4, 24, dtype=torch.uint8), shifted):
        assert not wide_product_triton.described([x, other], 90)


@pytest.mark.parametrize("memory", ["fast", "balanced"])
def test_a_sub_block_trains_by_them(memory, monkeypatch, target):
    """As with the library's product and the pass: droppath, a trained adapter, a residual stream in float32."""
    torch.manual_seed(0)
    norm = NormWeights(torch.rand(32) + 0.5, torch.randn(32))
    mlp = MLPWeights(*(torch.randn(*shape).half() * 0.2 for shape in ((64, 32), (64,), (32, 64), (32,))))
    leaves = [torch.randn(*shape).mul(0.2).requires_grad_() for shape in ((8, 32), (8,), (32, 8), (32,))]
    x, flow = torch.randn(2, 3, 7, 32).requires_grad_(), torch.randn(2, 3, 7, 32)
    drop, tiles = torch.tensor([0.0, 1.25]).view(2, 1, 1, 1), {}
    for direction in ("forward", "backward"):
        tiles[Launch(f"wide_product_{direction}", 72, 0, 2, 0, "wide_product")] = SHAPE

    def train():
        with trying(tiles) as trial:
            out = joint_adaptation(x, norm, mlp, AdapterWeights(*leaves), drop, 0.5, memory=memory)
            return trial.asked, (out, *torch.autograd.grad(out, (x, *leaves), flow))

    _, plain = train()  # on a CPU by plain torch
    monkeypatch.setattr(registration, "runs_triton", lambda *typed: True)
    asked, found = train()
    products = [launch.kernel for launch in asked if launch in tiles]
    assert products == ["wide_product_forward", "wide_product_backward"][: 2 if memory == "fast" else 1]
    for got, wanted in zip(found, plain, strict=True):
        assert (got - wanted).norm() <= 0.004 * wanted.norm()


def test_a_tuning_finds_every_tile_right():
    half = torch.float16
    rows, weight, columns = ((300, 40), (40, 1)), ((48, 40), (40, 1)), ((40, 48), (48, 1))
    y, widening, narrowing, bias = (Layout(*x, half) for x in (rows, weight, columns, ((48,), (1,))))
    own, slope = Layout((300, 16), (16, 1), half), Layout((300, 32), (32, 1), torch.uint8)
    for call in (
        Call("wide_product", (y, widening, bias, 32, "quick_gelu", None, True)),
        Call("wide_product_backward", (y, narrowing, slope, own, None)),
    ):
        choice = Selection(torch.device("cpu"), lambda functions: dict.fromkeys(functions, 1.0)).choose(call)
        assert len(choice.tried) > 3
        assert {tried.fault for tried in choice.tried} == {None}
        assert choice.name == "committed"
