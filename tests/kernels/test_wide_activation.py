"""aim::wide_activation on CPU, on every tier, against float64."""

import pytest
import torch
import torch.nn.functional as F

from aim_kernels.wide_activation import wide_activation
from bench import error_rule


def plainly(u, split, quick, factor):
    frozen, adapter = u[:, :split], F.gelu(u[:, split:])
    frozen = frozen * torch.sigmoid(1.702 * frozen) if quick else F.gelu(frozen)
    if factor is not None:
        adapter = adapter * factor[:, None].to(u.dtype)
    return torch.cat([frozen, adapter], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("split", "quick", "dropped"), [(64, True, True), (43, False, True), (0, True, False)])
def test_forward_and_backward(split, quick, dropped, dtype, tier):
    torch.manual_seed(0)
    u = (3 * torch.randn(37, 83)).to(dtype)
    factor = torch.tensor([0.0, 1.25]).repeat(19)[:37] if dropped else None
    dy = torch.randn(37, 83).to(dtype)
    runs = []
    for function, x in ((wide_activation, u), (plainly, u), (plainly, u.double())):
        leaf = x.clone().requires_grad_()
        y = function(leaf, split, quick, factor)
        y.backward(dy.to(x.dtype))
        runs.append((y, leaf.grad))
    for got, plain, truth in zip(*runs, strict=True):
        error_rule.hold(got, plain, truth)


def test_far_tails_are_finite_and_right(tier):
    u = torch.tensor([[-90.0, -20.0, 20.0, 90.0] * 4])
    expected = torch.tensor([[0.0, 0.0, 20.0, 90.0] * 4])
    torch.testing.assert_close(wide_activation(u, 8), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    u = torch.randn(5, 20, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.aim.wide_activation.default, (u, 12, True, torch.rand(5)))
    torch.library.opcheck(torch.ops.aim.wide_activation_backward.default, (u.detach(), u.detach(), 12, False, None))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="0 ≤ split ≤ H"):
        wide_activation(torch.randn(3, 8), 9)
    with pytest.raises(ValueError, match=r"factor \[3\]"):
        wide_activation(torch.randn(3, 8), 4, factor=torch.ones(2))
