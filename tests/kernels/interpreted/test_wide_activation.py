"""The Triton kernel of the widened activation: a split inside a block, and at one's edge."""

import pytest
import torch

from aim_kernels import (
    error_rule,
    wide_activation,  # noqa: F401  (registers the operators)
)
from aim_kernels.registration import OPERATORS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("split", "activation", "dropped"),
    [(1024, "quick_gelu", True), (43, "gelu", True), (43, "gelu_tanh", True), (0, "quick_gelu", False)],
)
def test_forward_and_backward(split, activation, dropped, dtype):
    torch.manual_seed(0)
    u, dy = (2 * torch.randn(6, 1100)).to(dtype), torch.randn(6, 1100).to(dtype)
    factor = torch.tensor([0.0, 1.25, 1.25, 0.0, 1.25, 1.25]) if dropped else None
    for name, args in (("wide_activation", (u,)), ("wide_activation_backward", (dy, u))):
        kernel, reference = OPERATORS[name].triton, OPERATORS[name].reference
        truth = reference(*(x.double() for x in args), split, activation, factor)
        got = kernel(*args, split, activation, factor)
        error_rule.hold(got, reference(*args, split, activation, factor), truth)
