"""aim::residual_add on CPU, on every tier, against float64."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels.residual import residual_add


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 77])
def test_residual_add(width, stream, low, tier):
    torch.manual_seed(0)
    x, branch = torch.randn(3, 5, width).to(stream), torch.randn(15, width).to(low)
    factor, bias = torch.rand(15), torch.randn(width)
    for f, b in ((None, None), (factor, None), (factor, bias), (None, bias)):
        rows = 1.0 if f is None else f.double()[:, None]
        flat = x.double().view(15, width)
        truth = flat + (branch.double() * rows if b is None else branch.double() + rows * b.double())
        got = residual_add(x, branch, f, b)
        assert got.dtype == stream
        error_rule.hold(got.view(15, width), truth.to(stream), truth)


def test_opcheck():
    args = (torch.randn(6, 20), torch.randn(6, 20).bfloat16(), torch.rand(6), torch.randn(20))
    torch.library.opcheck(torch.ops.aim.residual_add.default, args, test_utils=("test_schema", "test_faketensor"))
