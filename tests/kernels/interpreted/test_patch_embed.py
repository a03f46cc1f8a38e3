"""The Triton kernels of patch_embed: a depth that is no multiple of 8, more tiles than one program sums, odd widths."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels import patch_embed as op
from aim_kernels.registration import OPERATORS

MEAN, STD = (122.769, 116.74, 104.04), (68.493, 66.63, 70.321)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("p", [4, 7])
def test_folded_normalisation(p, dtype):
    weight = torch.randn(5, 3, p, p)
    found = OPERATORS["fold_normalisation"].triton(weight, MEAN, STD, dtype)
    plain = op.fold_normalisation_reference(weight, MEAN, STD, dtype)
    truth = op.fold_normalisation_reference(weight.double(), MEAN, STD, torch.float64)
    for got, rounded, exact in zip(found, plain, truth, strict=True):
        assert got.dtype == rounded.dtype
        error_rule.hold(got, rounded, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("p", "width", "batch"), [(4, 40, 5), (6, 77, 2), (2, 64, 12)])
def test_forward_and_temporal_gradient(p, width, batch, dtype):
    torch.manual_seed(0)
    rows, columns, t = 3, 2, 3
    frames = torch.randint(0, 256, (batch, t, rows * p, columns * p, 3), dtype=torch.uint8)
    weight = torch.randn(width, 3, p, p) * 0.1
    first, position, temporal = torch.randn(width), torch.randn(7, width), torch.randn(t, width, requires_grad=True)
    ln_weight, ln_bias = torch.rand(width) + 0.5, torch.randn(width)
    flow = torch.randn(batch, t, 7, width)
    folded, bias = op.fold_normalisation(weight, MEAN, STD, dtype)
    stem = (bias, first, position, temporal.detach(), ln_weight)

    forward, backward = OPERATORS["patch_embed"].triton, OPERATORS["patch_embed_backward"].triton
    tokens, product, mean, rstd = forward(frames, folded, *stem, ln_bias, 1e-5, torch.float32)
    gradient = backward(flow, product, *stem, mean, rstd)

    plain = torch.nn.functional.linear(op.patches(frames, p).to(dtype) - op.MIDDLE, folded)
    assert torch.isfinite(product).all()
    torch.testing.assert_close(product, plain, atol=1e-2, rtol=1e-2)
    tensors = (weight, first, position, temporal, ln_weight, ln_bias)
    truth = op.patch_embed_reference(frames, *(x.detach().double() for x in tensors), MEAN, STD)
    exact = temporal.detach().double().requires_grad_()
    doubles = [exact if x is temporal else x.double() for x in tensors]
    op.patch_embed_reference(frames, *doubles, MEAN, STD).backward(flow.double())
    low = [weight.to(dtype), *tensors[1:]]
    rounded = op.patch_embed_reference(frames, *low, MEAN, STD)
    rounded.backward(flow)
    error_rule.hold(tokens, rounded, truth)
    error_rule.hold(gradient, temporal.grad, exact.grad)
