"""The Triton kernels of an adapter's bias gradients: slices, parts that rows do not fill, and the activation's pass."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels.bias_gradients import column_sums_reference, gelu_gradients_reference
from aim_kernels.registration import OPERATORS


def rows_of(number, dtype):
    return None if number is None else torch.randn(number, 90).to(dtype)[:, 7:84]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "width", "others"), [(3, 64, 1), (450, 77, 30), (140, 100, None)])
def test_sums(rows, width, others, dtype, parts):
    x, more = torch.randn(rows, width + 30).to(dtype)[:, 13 : 13 + width], rows_of(others, torch.float32)
    found = OPERATORS["column_sums"].triton(x, more, parts)
    wide = column_sums_reference(x.double(), None if more is None else more.double(), parts)
    for got, plain, truth in zip(found, column_sums_reference(x, more, parts), wide, strict=True):
        assert got.dtype == torch.float32
        error_rule.hold(got, plain, truth)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "width", "others"), [(3, 64, 200), (450, 77, None)])
def test_through_the_activation(rows, width, others, dtype, parts):
    dy, u, more = torch.randn(rows, width).to(dtype), torch.randn(rows, width).to(dtype), rows_of(others, dtype)
    for factor in (None, (torch.rand(rows) < 0.8) / 0.8):
        found = OPERATORS["gelu_gradients"].triton(dy, u, more, parts, factor)
        plain = gelu_gradients_reference(dy, u, more, parts, factor)
        wide = [None if x is None else x.double() for x in (dy, u, more, factor)]
        truth = gelu_gradients_reference(*wide[:3], parts, wide[3])
        for got, rounded, exact in zip(found, plain, truth, strict=True):
            assert got.dtype == rounded.dtype
            error_rule.hold(got, rounded, exact)
