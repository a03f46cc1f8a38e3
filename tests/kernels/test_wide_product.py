"""aim::wide_product on CPU: the library's product and the pass beside it, to the bit, unless a trial takes a tile."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels import wide_product as op
from aim_kernels.block_shapes import LIBRARY, BlockShape, Launch, candidates, trying

ROWS, WIDTH, M, H = 37, 24, 40, 9


def operands(dtype, dropped=True):
    torch.manual_seed(0)
    y, widening, bias = (torch.randn(*shape).to(dtype) for shape in ((ROWS, WIDTH), (M + H, WIDTH), (M + H,)))
    factor = torch.tensor([0.0, 1.25]).repeat(19)[:ROWS] if dropped else None
    return y, widening / WIDTH**0.5, bias, M, "quick_gelu", factor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_is_the_product_and_the_pass_beside_it(dtype):
    y, widening, bias, split, activation, factor = operands(dtype)
    u = torch.nn.functional.linear(y, widening, bias)
    hidden, slope = torch.ops.aim.wide_product(y, widening, bias, split, activation, factor, True)
    wanted = torch.ops.aim.wide_slope(u, split, activation, factor)
    assert torch.equal(hidden, wanted[0])
    assert torch.equal(slope, wanted[1])
    hidden, slope = torch.ops.aim.wide_product(y, widening, bias, split, activation, factor, False)
    assert torch.equal(hidden, torch.ops.aim.wide_activation(u, split, activation, factor))
    assert slope.shape == (0,)
    narrowing, own, slope = widening.t().contiguous(), u[:, split:], wanted[1]
    du = torch.ops.aim.wide_product_backward(y, narrowing, slope, own, factor)
    assert torch.equal(du, torch.ops.aim.wide_slope_backward(y @ narrowing, slope, own, factor))


def test_agrees_with_float64(tier):
    given = operands(torch.bfloat16)
    wide = [x.double() if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 else x for x in given]
    for got, plain, truth in zip(
        torch.ops.aim.wide_product(*given, True)[:1],
        op.wide_product_reference(*given, True)[:1],
        op.wide_product_reference(*wide, True)[:1],
        strict=True,
    ):
        error_rule.hold(got, plain, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_opcheck(dtype):
    given = operands(dtype)
    for keep in (True, False):
        torch.library.opcheck(torch.ops.aim.wide_product.default, (*given, keep))
    slope, own = torch.randint(0, 250, (ROWS, M), dtype=torch.uint8), torch.randn(ROWS, H).to(dtype)
    backward = (given[0], given[1].t().contiguous(), slope, own, given[5])
    torch.library.opcheck(torch.ops.aim.wide_product_backward.default, backward)


def test_the_committed_shape_is_the_librarys_and_a_trial_may_take_another():
    tile = BlockShape(128, 128, 8, 3)
    half, single = torch.empty(4, 16, dtype=torch.bfloat16), torch.empty(4, 16)
    for direction in ("forward", "backward"):
        launch = Launch(f"wide_product_{direction}", 80, 0, 2, 0, "wide_product")
        assert candidates(launch)[0] == LIBRARY
        assert op.product_shape(direction, half, 80, 64) == LIBRARY
        with trying({launch: tile}) as trial:
            assert op.product_shape(direction, half, 80, 64) == tile
        assert trial.asked == {launch: tile}
        with trying({launch: tile}) as trial:  # what no tile serves is not offered to a tuning
            for x, width, split in ((single, 80, 64), (half, 80, 60), (half, 81, 64), (half[:, :15], 80, 64)):
                assert op.product_shape(direction, x, width, split) == LIBRARY
        assert not trial.asked
