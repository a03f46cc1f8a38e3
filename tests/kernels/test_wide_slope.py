"""aim::wide_slope on CPU, on every tier: the activation's value, and its gradient from slopes of one byte."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels import wide_slope as op
from aim_kernels.wide_activation import wide_activation_backward_reference

ROWS, WIDTH = 37, 83


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("split", "activation", "dropped"),
    [(64, "quick_gelu", True), (43, "gelu", True), (43, "gelu_tanh", True), (83, "quick_gelu", False)],
)
def test_forward_and_backward(split, activation, dropped, dtype, tier):
    torch.manual_seed(0)
    u, dy = (3 * torch.randn(ROWS, WIDTH)).to(dtype), torch.randn(ROWS, WIDTH).to(dtype)
    factor = torch.tensor([0.0, 1.25]).repeat(19)[:ROWS] if dropped else None
    y, slope = torch.ops.aim.wide_slope(u, split, activation, factor)
    plain, coded = op.wide_slope_reference(u, split, activation, factor)
    error_rule.hold(y, plain, op.wide_slope_reference(u.double(), split, activation, factor)[0])
    assert slope.dtype == torch.uint8
    assert (slope.int() - coded.int()).abs().max() <= 1  # a code on the edge may fall to either side
    du = torch.ops.aim.wide_slope_backward(dy, slope, u[:, split:], factor).double()
    truth = wide_activation_backward_reference(dy.double(), u.double(), split, activation, factor)
    lost = (du - truth)[:, :split].abs() - dy.double()[:, :split].abs() * (0.0025 + 2e-4)
    assert (lost <= du[:, :split].abs() * torch.finfo(dtype).eps).all()
    exact = wide_activation_backward_reference(dy, u, split, activation, factor)
    if split < WIDTH:
        error_rule.hold(du[:, split:], exact[:, split:], truth[:, split:])


def test_zero_and_one_are_exact_and_nan_stays(tier):
    u = torch.tensor([[-200.0, -40.0, 40.0, 200.0] * 5, [torch.nan] * 20]).bfloat16()
    for activation in ("quick_gelu", "gelu", "gelu_tanh"):
        _, slope = torch.ops.aim.wide_slope(u, 20, activation, None)
        du = torch.ops.aim.wide_slope_backward(torch.ones_like(u), slope, u[:, 20:], None)
        assert torch.equal(du[0].float(), torch.tensor([0.0, 0.0, 1.0, 1.0] * 5))
        assert du[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_opcheck(dtype):
    u, slope = torch.randn(5, 20, dtype=dtype), torch.randint(0, 250, (5, 12), dtype=torch.uint8)
    torch.library.opcheck(torch.ops.aim.wide_slope.default, (u, 12, "gelu_tanh", torch.rand(5)))
    torch.library.opcheck(torch.ops.aim.wide_slope_backward.default, (u, slope, u[:, 12:], torch.rand(5)))
