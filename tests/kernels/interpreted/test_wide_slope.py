"""The Triton kernels that keep slopes in a byte: a split inside a block, at one's edge, and no adapter's columns."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels import wide_slope as op
from aim_kernels.registration import OPERATORS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("split", "activation", "dropped"),
    [(1024, "quick_gelu", True), (43, "gelu", True), (43, "gelu_tanh", True), (1100, "quick_gelu", False)],
)
def test_forward_and_backward(split, activation, dropped, dtype):
    torch.manual_seed(0)
    u, dy = (2 * torch.randn(6, 1100)).to(dtype), torch.randn(6, 1100).to(dtype)
    u[3, 7] = torch.nan
    factor = torch.tensor([0.0, 1.25, 1.25, 0.0, 1.25, 1.25]) if dropped else None
    y, slope = OPERATORS["wide_slope"].triton(u, split, activation, factor)
    plain, coded = op.wide_slope_reference(u, split, activation, factor)
    assert (slope.int() - coded.int()).abs().max() <= 1
    assert y[3, 7].isnan()
    du = OPERATORS["wide_slope_backward"].triton(dy, coded, u[:, split:], factor)
    assert du[3, 7].isnan()
    got, args = (x.nan_to_num() for x in (y, du)), (dy, coded, u[:, split:], factor)
    rounded = [x.nan_to_num() for x in (plain, op.wide_slope_backward_reference(*args))]
    wide = (dy.double(), coded, u[:, split:].double(), factor)
    truth = op.wide_slope_reference(u.double(), split, activation, factor)[0], op.wide_slope_backward_reference(*wide)
    for value, plainly, exact in zip(got, rounded, truth, strict=True):
        error_rule.hold(value, plainly, exact.nan_to_num())
