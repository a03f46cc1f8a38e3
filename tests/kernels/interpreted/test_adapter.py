"""The adapter's Triton kernels: rows, widths and hidden sizes that fill no tile, and all that may surround it."""

import pytest
import torch

from aim_kernels import (
    adapter,  # noqa: F401  (registers the operators)
    error_rule,
)
from aim_kernels.registration import OPERATORS

FORWARD, BACKWARD = OPERATORS["adapter"], OPERATORS["adapter_backward"]
M, D = 70, 80


def both(hidden, dtype, skip, scale, surrounded):
    """What the kernels, the products in the same dtype and the products in float64 make of the same tensors."""
    torch.manual_seed(0)
    shapes = ((M, D), (hidden, D), (hidden,), (D, hidden), (D,), (M, D))
    z, w1, b1, w2, b2, g = (torch.randn(*shape) / shape[-1] ** 0.5 for shape in shapes)
    residual, factor = (torch.randn(M, D), torch.tensor([0.0, 1.25]).repeat(M // 2)) if surrounded else (None, None)
    g = (g if surrounded else g.to(dtype)).requires_grad_(False)
    runs = []
    for kernel, kind in ((True, dtype), (False, dtype), (False, torch.float64)):
        wide = torch.promote_types(kind, torch.float32)
        low = [x.to(dtype).to(kind) for x in (z, w1, b1, w2, b2)]
        around = [None if x is None else x.to(wide) for x in (residual, factor)]
        out, u = (FORWARD.triton if kernel else FORWARD.reference)(*low, skip, scale, *around)
        flow = g.to(torch.float64) if kind == torch.float64 else g
        rest = (flow, u, low[1], low[3], skip, scale, around[1], True)
        runs.append((out, u, *(BACKWARD.triton if kernel else BACKWARD.reference)(*rest)))
    return runs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("skip", "scale", "surrounded"), [(True, 1.0, False), (False, 0.5, True)])
@pytest.mark.parametrize("hidden", [16, 20, 144])
def test_forward_and_backward(hidden, skip, scale, surrounded, dtype):
    kernel, plain, truth = both(hidden, dtype, skip, scale, surrounded)
    for got, rounded, exact in zip(kernel, plain, truth, strict=True):
        if len(got):
            error_rule.hold(got, rounded, exact)
        else:
            assert not len(rounded)


def test_no_gradient_of_the_input_is_formed_unasked():
    torch.manual_seed(0)
    g, u, w1, w2 = torch.randn(5, 16), torch.randn(5, 8), torch.randn(8, 16), torch.randn(16, 8)
    dz, du, _, branch = BACKWARD.triton(g, u, w1, w2, True, 2.0, None, False)
    assert (len(dz), len(branch)) == (0, 5)
    torch.testing.assert_close(du, BACKWARD.reference(g, u, w1, w2, True, 2.0, None, False)[1])
