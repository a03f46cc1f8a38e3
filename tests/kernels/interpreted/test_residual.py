"""The Triton kernel of the residual add: every combination of factor and bias."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels.registration import OPERATORS
from aim_kernels.residual import residual_add_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("with_factor", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_add(with_bias, with_factor, dtype):
    x, branch = torch.randn(7, 77), torch.randn(7, 77).to(dtype)
    factor, bias = torch.rand(7) if with_factor else None, torch.randn(77) if with_bias else None
    got = OPERATORS["residual_add"].triton(x, branch, factor, bias)
    truth = residual_add_reference(x.double(), branch.double(), factor, bias)
    error_rule.hold(got, residual_add_reference(x, branch, factor, bias), truth)
