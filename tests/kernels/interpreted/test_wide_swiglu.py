"""The Triton kernel of the gated activation: a split inside a block, at one's edge, and with either part alone."""

import pytest
import torch

from aim_kernels import (
    error_rule,
    wide_swiglu,  # noqa: F401  (registers the operators)
)
from aim_kernels.registration import OPERATORS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("split", "own", "dropped"), [(1024, 76, True), (43, 1057, True), (300, 0, False), (0, 90, True)]
)
def test_forward_and_backward(split, own, dropped, dtype):
    torch.manual_seed(0)
    u, dy = (2 * torch.randn(6, 2 * split + own)).to(dtype), torch.randn(6, split + own).to(dtype)
    factor = torch.tensor([0.0, 1.25, 1.25, 0.0, 1.25, 1.25]) if dropped else None
    for name, args in (("wide_swiglu", (u,)), ("wide_swiglu_backward", (dy, u))):
        kernel, reference = OPERATORS[name].triton, OPERATORS[name].reference
        truth = reference(*(x.double() for x in args), split, factor)
        got = kernel(*args, split, factor)
        error_rule.hold(got, reference(*args, split, factor), truth)
