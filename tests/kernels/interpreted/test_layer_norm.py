"""The Triton kernels of layer norm: widths off powers of two, rows that do not fill the last program."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels import layer_norm as op
from aim_kernels.registration import OPERATORS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("width", [64, 77])
@pytest.mark.parametrize("rms", [False, True])
def test_forward_and_backward(rms, width, residual, dtype):
    torch.manual_seed(0)
    x, dy = (torch.randn(7, width).to(dtype) for _ in range(2))
    weight, bias = torch.rand(width) + 0.5, None if rms else torch.randn(width)
    around = torch.randn(7, width).to(dtype) if residual else None
    y, mean, rstd = OPERATORS["layer_norm"].triton(x, weight, bias, 1e-5, dtype)
    for kept in (torch.float32, torch.float16):
        *found, copy = OPERATORS["layer_norm_kept"].triton(x, weight, bias, 1e-5, dtype, kept)
        assert torch.equal(copy, x.to(kept))
        assert all(torch.equal(got, wanted) for got, wanted in zip(found, (y, mean, rstd), strict=True))
    dx = OPERATORS["layer_norm_backward"].triton(dy, x, weight, mean, rstd, around)
    truth = op.layer_norm_reference(x.double(), weight, bias, 1e-5, torch.float64)
    plain = op.layer_norm_reference(x, weight, bias, 1e-5, dtype)
    for got, rounded, exact in zip((y, mean, rstd), plain, truth, strict=True):
        error_rule.hold(got, rounded, exact)  # of an RMS norm the means are none
    if not rms:  # and of x̂ in the place of x
        normal, statistics = torch.randn(7, width).to(dtype), (None, rstd)
        found = OPERATORS["layer_norm_backward"].triton(dy, normal, weight, *statistics, around)
        wide = op.layer_norm_backward_reference(dy.double(), normal.double(), weight, None, rstd.double(), around)
        error_rule.hold(found, op.layer_norm_backward_reference(dy, normal, weight, *statistics, around), wide)
    rounded = op.layer_norm_backward_reference(dy, x, weight, *plain[1:], around)
    error_rule.hold(dx, rounded, op.layer_norm_backward_reference(dy.double(), x.double(), weight, *truth[1:], around))
