"""The Triton kernels of column sums: slices, rows that do not fill the last chunk, and the copy with its factor."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels.column_sum import SPAN, branch_gradient_reference, column_sum_reference, launch_shape
from aim_kernels.registration import OPERATORS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("with_factor", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(3, 64), (300, 77), (140, 300)])
def test_sum_of_a_slice(rows, width, with_factor, dtype):
    x = torch.randn(rows, width + 30).to(dtype)[:, 13 : 13 + width]
    factor = torch.rand(rows) if with_factor else None
    got = OPERATORS["column_sum"].triton(x, factor)
    error_rule.hold(got, column_sum_reference(x, factor), column_sum_reference(x.double(), factor))


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("with_factor", [False, True])
@pytest.mark.parametrize("stream", [torch.float32, torch.float16])
def test_branch_and_bias(stream, with_factor, dropped):
    rows = SPAN * launch_shape(300, 0)[0]["ROWS"] + 9
    g, factor = torch.randn(rows, 300).to(stream), 1.25 * (torch.rand(rows) < 0.8) if with_factor else None
    got = OPERATORS["branch_gradient"].triton(g, factor, torch.float16, dropped)
    plain = branch_gradient_reference(g, factor, torch.float16, dropped)
    truth = branch_gradient_reference(g.double(), factor, torch.float64, dropped)
    assert got[0].dtype == torch.float16
    for value, rounded, exact in zip(got, plain, truth, strict=True):
        error_rule.hold(value, rounded, exact)


def test_rows_and_columns_that_do_not_lie_side_by_side():
    x = torch.randn(70, 40).t()
    error_rule.hold(OPERATORS["column_sum"].triton(x), x.sum(0), x.double().sum(0))
