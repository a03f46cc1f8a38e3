"""The Triton kernels that write rows in eight bits: rows whole, widths off powers of two, what they write beside.

Their values are written in float32 here: the interpreter's e4m3 is not a card's, which tests/gpu holds.
"""

import pytest
import torch

from aim_kernels import error_rule, scaled_activation, scaled_norm, scaled_rows
from aim_kernels.registration import OPERATORS

WIDE = torch.float32


def hold(found, plain, truth):
    for got, rounded, exact in zip(found, plain, truth, strict=True):
        error_rule.hold(got, rounded, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [64, 77])
def test_rows(width, dtype):
    torch.manual_seed(0)
    x = torch.randn(7, width).to(dtype)
    x[3] = 0
    found = OPERATORS["scaled_rows"].triton(x, WIDE)
    plain = scaled_rows.scaled_rows_reference(x, WIDE)
    hold(found, plain, scaled_rows.scaled_rows_reference(x.double(), torch.float64))


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(("plain", "kept"), [(False, False), (True, True)])
def test_norm(rms, plain, kept):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 7, 77), torch.rand(77) + 0.5, None if rms else torch.randn(77)
    asked = (WIDE, torch.float16, plain, kept)
    found = OPERATORS["scaled_norm"].triton(x, weight, bias, 1e-5, *asked)
    rounded = scaled_norm.scaled_norm_reference(x, weight, bias, 1e-5, *asked)
    wide = None if bias is None else bias.double()
    truth = scaled_norm.scaled_norm_reference(
        x.double(), weight.double(), wide, 1e-5, torch.float64, torch.float64, plain, kept
    )
    hold(found, rounded, truth)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_activation_and_slope(activation):
    torch.manual_seed(0)
    u, dh = (torch.randn(5, 77).half() for _ in range(2))
    *found, slope = OPERATORS["scaled_activation"].triton(u, activation, WIDE, True)
    *plain, codes = scaled_activation.scaled_activation_reference(u, activation, WIDE, True)
    *truth, _ = scaled_activation.scaled_activation_reference(u.double(), activation, torch.float64, True)
    hold(found, plain, truth)
    assert (slope.int() - codes.int()).abs().max() <= 1
    assert len(OPERATORS["scaled_activation"].triton(u, activation, WIDE, False)[2]) == 0
    found = OPERATORS["scaled_slope"].triton(dh, codes, WIDE)
    plain = scaled_activation.scaled_slope_reference(dh, codes, WIDE)
    hold(found, plain, scaled_activation.scaled_slope_reference(dh.double(), codes, torch.float64))
