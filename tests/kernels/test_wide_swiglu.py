"""aim::wide_swiglu on CPU, on every tier, against float64."""

import pytest
import torch
import torch.nn.functional as F

from aim_kernels import error_rule
from aim_kernels.wide_swiglu import wide_swiglu


def plainly(u, split, factor):
    adapter = F.gelu(u[:, 2 * split :])
    if factor is not None:
        adapter = adapter * factor[:, None].to(u.dtype)
    return torch.cat([F.silu(u[:, :split]) * u[:, split : 2 * split], adapter], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("split", "own", "dropped"), [(64, 19, True), (43, 16, True), (37, 0, False), (0, 40, False)])
def test_forward_and_backward(split, own, dropped, dtype, tier):
    torch.manual_seed(0)
    u = (3 * torch.randn(37, 2 * split + own)).to(dtype)
    factor = torch.tensor([0.0, 1.25]).repeat(19)[:37] if dropped else None
    dy = torch.randn(37, split + own).to(dtype)
    runs = []
    for function, x in ((wide_swiglu, u), (plainly, u), (plainly, u.double())):
        leaf = x.clone().requires_grad_()
        y = function(leaf, split, factor)
        y.backward(dy.to(x.dtype))
        runs.append((y, leaf.grad))
    for got, plain, truth in zip(*runs, strict=True):
        error_rule.hold(got, plain, truth)


def test_float64_is_torchs_own(tier):
    torch.manual_seed(0)
    u = (4 * torch.randn(9, 50, dtype=torch.float64)).requires_grad_()
    factor, flow = torch.rand(9), torch.randn(9, 33, dtype=torch.float64)
    ours, theirs = wide_swiglu(u, 17, factor), plainly(u, 17, factor)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(y, u, flow)[0] for y in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_far_tails_are_finite_and_right_and_nan_stays(tier):
    gate, value = torch.tensor([-200.0, -90.0, 90.0, 200.0] * 5), torch.full((20,), 3.0)
    value[19] = torch.nan
    u = torch.cat([gate, value])[None].requires_grad_()
    y = wide_swiglu(u, 20)
    torch.testing.assert_close(y[0, :19], (3 * gate.clamp_min(0))[:19], atol=1e-6, rtol=1e-6)
    (du,) = torch.autograd.grad(y.sum(), u)
    torch.testing.assert_close(du[0, :19], (3.0 * (gate > 0))[:19], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(du[0, 20:], gate.clamp_min(0), atol=1e-6, rtol=1e-6)
    assert y[0, 19].isnan()
    assert du[0, 19].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_opcheck(dtype):
    u, dy = torch.randn(5, 32, dtype=dtype, requires_grad=True), torch.randn(5, 20, dtype=dtype)
    torch.library.opcheck(torch.ops.aim.wide_swiglu.default, (u, 12, torch.rand(5)))
    torch.library.opcheck(torch.ops.aim.wide_swiglu_backward.default, (dy, u.detach(), 12, None))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"0 ≤ split ≤ H, got \[3, 8\] and 5"):
        wide_swiglu(torch.randn(3, 8), 5)
    with pytest.raises(ValueError, match=r"factor \[3\]"):
        wide_swiglu(torch.randn(3, 8), 4, torch.ones(2))
