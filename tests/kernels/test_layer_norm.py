"""aim::layer_norm and its input gradient on CPU, on every tier, against float64."""

import pytest
import torch
import torch.nn.functional as F

from aim_kernels import error_rule
from aim_kernels.layer_norm import layer_norm, layer_norm_backward_reference, layer_norm_reference


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 77])
@pytest.mark.parametrize("rms", [False, True])
def test_forward_and_input_gradient(rms, width, stream, low, tier):
    torch.manual_seed(0)
    x = (torch.randn(3, 5, width) * 2 + 1).to(stream)
    weight, bias = torch.rand(width) + 0.5, None if rms else torch.randn(width)
    dy, residual = torch.randn(3, 5, width).to(low), torch.randn(3, 5, width).to(stream)

    def run(x, dy, residual):
        leaf = x.clone().requires_grad_()
        if rms:
            y = F.rms_norm(leaf, (width,), weight.to(x.dtype), 1e-5)
        else:
            y = F.layer_norm(leaf, (width,), weight.to(x.dtype), bias.to(x.dtype))
        (y * dy.to(x.dtype)).sum().backward()
        return y.detach(), leaf.grad + residual

    y, mean, rstd = torch.ops.aim.layer_norm(x, weight, bias, 1e-5, low)
    dx = torch.ops.aim.layer_norm_backward(dy, x, weight, mean, rstd, residual)
    truth_y, truth_dx = run(x.double(), dy.double(), residual.double())
    plain_y, plain_dx = run(x, dy, residual)
    assert (y.dtype, dx.dtype) == (low, stream)
    rounded = torch.ops.aim.layer_norm_backward(dy, x.to(low), weight, mean, rstd, residual)
    assert rounded.dtype == stream
    torch.testing.assert_close(rounded, dx, atol=0.05, rtol=0.02)
    error_rule.hold(y, plain_y.to(low), truth_y)
    error_rule.hold(dx, plain_dx, truth_dx)


@pytest.mark.parametrize("rms", [False, True])
def test_backward_reference_is_the_gradient(rms):
    x = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(9, dtype=torch.float64), None if rms else torch.randn(9, dtype=torch.float64)
    dy = torch.randn(4, 9, dtype=torch.float64)
    y, mean, rstd = layer_norm_reference(x, weight, bias, 1e-5, torch.float64)
    y.backward(dy)
    got = layer_norm_backward_reference(dy, x.detach(), weight, mean.detach(), rstd.detach())
    torch.testing.assert_close(got, x.grad)
    if not rms:
        normal = (x - mean[:, None]) * rstd[:, None]
        got = torch.ops.aim.layer_norm_backward(dy, normal.detach(), weight, None, rstd.detach(), None)
        torch.testing.assert_close(got, x.grad)


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [None, torch.randn(77)], ids=["rms", ""])
def test_the_copy_that_is_kept_is_that_of_the_input(bias, kept, tier):
    x, weight = torch.randn(3, 5, 77).transpose(0, 1), torch.rand(77)
    *found, copy = torch.ops.aim.layer_norm_kept(x, weight, bias, 1e-5, torch.bfloat16, kept)
    assert torch.equal(copy, x.to(kept))
    assert (copy.dtype, copy.is_contiguous(), copy.data_ptr() == x.data_ptr()) == (kept, True, False)
    for got, wanted in zip(found, torch.ops.aim.layer_norm(x, weight, bias, 1e-5, torch.bfloat16), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=0.01)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype, rms):
    x = torch.randn(3, 20, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(20), None if rms else torch.randn(20)
    torch.library.opcheck(torch.ops.aim.layer_norm.default, (x, weight, bias, 1e-5, dtype))
    y, mean, rstd = torch.ops.aim.layer_norm(x.detach(), weight, bias, 1e-5, dtype)
    kept, tests = (x.detach(), weight, bias, 1e-5, dtype, torch.bfloat16), ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.aim.layer_norm_kept.default, kept, test_utils=tests)
    for given in (mean, None):
        torch.library.opcheck(torch.ops.aim.layer_norm_backward.default, (y, x.detach(), weight, given, rstd, None))


@pytest.mark.parametrize("bias", [None, torch.zeros(8, requires_grad=True)], ids=["rms", ""])
def test_trainable_affine_still_gets_its_gradient(bias):
    weight = torch.ones(8, requires_grad=True)
    layer_norm(torch.randn(3, 8), weight, bias).square().sum().backward()
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("bias", [None, torch.zeros(8)], ids=["rms", ""])
def test_empty_and_nan(bias, tier):
    weight = torch.ones(8)
    assert layer_norm(torch.empty(0, 3, 8), weight, bias).shape == (0, 3, 8)
    x = torch.randn(3, 8)
    x[1, 0] = float("nan")
    assert layer_norm(x, weight, bias).isnan().all(1).tolist() == [False, True, False]


def test_wrong_affine_is_named():
    with pytest.raises(ValueError, match=r"needs weight and bias \[8\]"):
        layer_norm(torch.randn(3, 8), torch.ones(7), torch.zeros(7))
