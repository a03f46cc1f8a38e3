"""The Triton kernels that end one sub-block and begin the next: every form of the add, what is kept, and back."""

import pytest
import torch

from aim_kernels import error_rule, layer_norm_triton
from aim_kernels import residual_norm as op
from aim_kernels.registration import OPERATORS

HALF, WIDE = torch.float16, torch.float64


def wide(x):
    return x.double() if isinstance(x, torch.Tensor) else WIDE if isinstance(x, torch.dtype) else x


def hold(name, operands):
    found = OPERATORS[name].triton(*operands)
    reference = getattr(op, f"{name}_reference")
    plain, truth = reference(*operands), reference(*map(wide, operands))
    for got, rounded, exact in zip(found, plain, truth, strict=True):
        assert got.shape == rounded.shape
        assert got.dtype == rounded.dtype
        error_rule.hold(got, rounded, exact)
    return found


@pytest.mark.parametrize(("factor", "added"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("stream", [torch.float32, HALF])
def test_forward(stream, rms, factor, added):
    torch.manual_seed(0)
    x, branch = torch.randn(7, 77).to(stream), torch.randn(7, 77).half()
    rows, column = torch.rand(7) + 0.5 if factor else None, torch.randn(77) if added else None
    norm = torch.rand(77) + 0.5, None if rms else torch.randn(77)
    asked = ((None, True, None), (None, True, HALF), (torch.float32, False, HALF), (torch.float32, True, None))
    for eight_bits, plain, kept in asked:
        operands = (x, branch, rows, column, *norm, 1e-5, HALF, eight_bits, plain, kept)
        out, _, copy, *_ = hold("residual_norm", operands)
        assert kept is None or torch.equal(copy, out.to(kept))


@pytest.mark.parametrize("norm", ["layer", "rms", "unit"])
@pytest.mark.parametrize(("factor", "dropped"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("rows", [7, layer_norm_triton.PART + 3])
def test_backward(rows, factor, dropped, norm):
    torch.manual_seed(0)
    dy, x = (torch.randn(rows, 77).half() for _ in range(2))
    g, weight, rstd = torch.randn(rows, 77), torch.rand(77) + 0.5, torch.rand(rows) + 0.5
    mean = {"layer": torch.randn(rows), "rms": torch.randn(0), "unit": None}[norm]
    drop = torch.rand(rows) + 0.5 if factor else None
    for summed, apart, eight_bits in ((True, False, None), (True, True, torch.float32), (False, False, torch.float32)):
        operands = (dy, x, weight, mean, rstd, g, drop, HALF, dropped, summed, apart, eight_bits)
        _, branch, _, *rows = hold("residual_norm_backward", operands)
        if eight_bits is not None:  # the bits of a pass of its own
            assert all(map(torch.equal, rows, OPERATORS["scaled_rows"].triton(branch, eight_bits)))
