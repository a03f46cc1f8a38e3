"""aim::column_sum and aim::branch_gradient on CPU, on every tier, against float64."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels.column_sum import branch_gradient, column_sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_column_sum_of_a_slice(dtype, tier):
    x = torch.randn(200, 150).to(dtype)[:, 10:93]
    error_rule.hold(column_sum(x, torch.float32), x.float().sum(0), x.double().sum(0))


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("needs_bias", [False, True])
def test_gradient_of_a_branch_and_its_bias(needs_bias, dropped, stream, low, tier):
    torch.manual_seed(0)
    g, drop = torch.randn(3, 70, 77).to(stream), 1.25 * (torch.rand(210) < 0.8)
    for factor in (None, drop):
        branch, bias = branch_gradient(g, low, needs_bias, factor, dropped)
        truth = g.double().view(210, 77)
        wanted = truth if factor is None else truth * factor.double()[:, None]
        plain = (g if factor is None else g * factor.to(stream).view(3, 70, 1)).to(low).view(210, 77)
        copy = wanted if dropped else truth
        error_rule.hold(branch, plain if dropped else g.to(low).view(210, 77), copy)
        assert branch.dtype == low
        if needs_bias:
            error_rule.hold(bias, plain.sum(0, dtype=torch.promote_types(low, torch.float32)), wanted.sum(0))
        else:
            assert bias is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    g, factor, tests = torch.randn(6, 20).to(dtype), torch.rand(6), ("test_schema", "test_faketensor")
    for f in (None, factor):
        torch.library.opcheck(torch.ops.aim.column_sum.default, (g, f), test_utils=tests)
        for low, dropped in ((dtype, False), (dtype, True), (torch.bfloat16, False), (torch.bfloat16, True)):
            torch.library.opcheck(torch.ops.aim.branch_gradient.default, (g, f, low, dropped), test_utils=tests)


def test_no_rows_sum_to_zero(tier):
    assert column_sum(torch.empty(0, 5), torch.float32).tolist() == [0.0] * 5
    branch, bias = branch_gradient(torch.empty(0, 5), torch.bfloat16, True)
    assert branch.shape == (0, 5)
    assert bias.tolist() == [0.0] * 5
