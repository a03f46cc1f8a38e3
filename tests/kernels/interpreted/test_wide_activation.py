"""The Triton kernel of the widened activation: a split inside a block, and at one's edge."""

import pytest
import torch

from aim_kernels import wide_activation as op


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("split", "quick", "dropped"), [(1024, True, True), (43, False, True), (0, True, False)])
def test_forward_and_backward(split, quick, dropped, dtype, holds_error_rule):
    torch.manual_seed(0)
    u, dy = (2 * torch.randn(6, 1100)).to(dtype), torch.randn(6, 1100).to(dtype)
    factor = torch.tensor([0.0, 1.25, 1.25, 0.0, 1.25, 1.25]) if dropped else None
    for got, reference, args in (
        (op._triton(None, u, split, quick, factor), op.wide_activation_reference, (u,)),
        (op._triton(dy, u, split, quick, factor), op.wide_activation_backward_reference, (dy, u)),
    ):
        truth = reference(*(x.double() for x in args), split, quick, factor)
        holds_error_rule(got, reference(*args, split, quick, factor), truth)
