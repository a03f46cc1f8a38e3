"""The Triton kernels that end one sub-block and begin the next: every form of the add, what is kept, and back."""

import pytest
import torch

from aim_kernels import error_rule, layer_norm_triton
from aim_kernels import residual_norm as op
from aim_kernels.packed import packed_reference, unpacked_reference
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


def agree(found, reference, stream):
    """Where one rounds up and the other down the two parts differ, and what they make does not. In float16, as the
    interpreter cuts off what a card rounds to bfloat16."""
    for got, wanted in zip(found, reference, strict=True):
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
    got, wanted = (unpacked_reference(*(x[i] for i in stream)) for x in (found, reference))
    torch.testing.assert_close(got, wanted, rtol=2**-14, atol=1e-5)
    for i, (got, wanted) in enumerate(zip(found, reference, strict=True)):
        if i not in stream:
            torch.testing.assert_close(got.float(), wanted.float(), rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(("unpack", "pack"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize(("factor", "added"), [(False, False), (True, False), (True, True)])
def test_forward_of_a_packed_stream(factor, added, unpack, pack):
    torch.manual_seed(0)
    x, branch = torch.randn(7, 77), torch.randn(7, 77).half()
    rows, column = torch.rand(7) + 0.5 if factor else None, torch.randn(77) if added else None
    parts = (x, None, None, None)
    if unpack:
        parts = (*packed_reference(x, HALF), torch.randn(7), torch.rand(7) + 0.5)
    norm = torch.ones(77), torch.zeros(77)
    for eight_bits in (None, torch.float32):
        how = (branch, rows, column, *norm, 1e-5, HALF, eight_bits, True, None)
        operands = (parts[0], *how, *parts[1:], pack)
        found, reference = OPERATORS["residual_norm"].triton(*operands), op.residual_norm_reference(*operands)
        agree(found, reference, (1, 0) if pack else (0,))


@pytest.mark.parametrize(("unpack", "pack"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("factor", [False, True])
def test_backward_of_a_packed_stream(factor, unpack, pack):
    torch.manual_seed(0)
    rows = layer_norm_triton.PART + 3
    dy, x = (torch.randn(rows, 77).half() for _ in range(2))
    g, low = torch.randn(rows, 77), None
    if unpack:
        g, low = packed_reference(g, HALF)
    drop = torch.rand(rows) + 0.5 if factor else None
    how = (drop, HALF, False, True, True, None, low, pack)
    operands = (dy, x, torch.ones(77), None, torch.rand(rows) + 0.5, g, *how)
    found = OPERATORS["residual_norm_backward"].triton(*operands)
    agree(found, op.residual_norm_backward_reference(*operands), (1, 0) if pack else (0,))
