"""aim::wide_activation on CPU, on every tier, against float64."""

import pytest
import torch
import torch.nn.functional as F

from aim_kernels import error_rule
from aim_kernels.adaptation import activate
from aim_kernels.wide_activation import wide_activation


def plainly(u, split, activation, factor):
    frozen, adapter = activate(u[:, :split], activation), F.gelu(u[:, split:])
    if factor is not None:
        adapter = adapter * factor[:, None].to(u.dtype)
    return torch.cat([frozen, adapter], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("split", "activation", "dropped"),
    [(64, "quick_gelu", True), (43, "gelu", True), (43, "gelu_tanh", True), (0, "quick_gelu", False)],
)
def test_forward_and_backward(split, activation, dropped, dtype, tier):
    torch.manual_seed(0)
    u = (3 * torch.randn(37, 83)).to(dtype)
    factor = torch.tensor([0.0, 1.25]).repeat(19)[:37] if dropped else None
    dy = torch.randn(37, 83).to(dtype)
    runs = []
    for function, x in ((wide_activation, u), (plainly, u), (plainly, u.double())):
        leaf = x.clone().requires_grad_()
        y = function(leaf, split, activation, factor)
        y.backward(dy.to(x.dtype))
        runs.append((y, leaf.grad))
    for got, plain, truth in zip(*runs, strict=True):
        error_rule.hold(got, plain, truth)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_far_tails_are_finite_and_right(activation, tier):
    u = torch.tensor([[-90.0, -20.0, 20.0, 90.0] * 4], requires_grad=True)
    expected = torch.tensor([[0.0, 0.0, 20.0, 90.0] * 4])
    y = wide_activation(u, 8, activation)
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-6)
    (slope,) = torch.autograd.grad(y.sum(), u)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0.0, 1.0, 1.0] * 4]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_activations_are_torchs_in_float64(activation):
    u = torch.linspace(-8, 8, 400, dtype=torch.float64).view(10, 40).requires_grad_()
    theirs = {
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    }[activation](u)
    ours = wide_activation(u, 40, activation)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    gradients = (torch.autograd.grad(y.sum(), u)[0] for y in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    u = torch.randn(5, 20, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.aim.wide_activation.default, (u, 12, "gelu_tanh", torch.rand(5)))
    torch.library.opcheck(torch.ops.aim.wide_activation_backward.default, (u.detach(), u.detach(), 12, "gelu", None))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="0 ≤ split ≤ H"):
        wide_activation(torch.randn(3, 8), 9)
    with pytest.raises(ValueError, match=r"factor \[3\]"):
        wide_activation(torch.randn(3, 8), 4, factor=torch.ones(2))
    with pytest.raises(ValueError, match="'swiglu' is none of quick_gelu"):
        wide_activation(torch.randn(3, 8), 4, "swiglu")
