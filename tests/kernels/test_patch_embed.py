"""aim::patch_embed on CPU: value and temporal gradient against float64, precision, checks, and the torch contracts."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels.patch_embed import fold_normalisation, patch_embed, patch_embed_reference

MEAN, STD = (122.769, 116.74, 104.04), (68.493, 66.63, 70.321)


def stem(p=8, width=24, rows=2, columns=3, t=3, batch=2):
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (batch, t, rows * p, columns * p, 3), dtype=torch.uint8)
    n = 1 + rows * columns
    weight = torch.randn(width, 3, p, p) * 0.05
    first, position, temporal = torch.randn(width), torch.randn(n, width), torch.randn(t, width)
    return frames, [weight, first, position, temporal, torch.rand(width) + 0.5, torch.randn(width)]


def value_and_gradient(function, frames, tensors, flow, dtype=None):
    tensors = [x.detach().to(dtype or x.dtype) for x in tensors]
    tensors[3].requires_grad_()
    tokens = function(frames, *tensors, MEAN, STD)
    tokens.backward(flow.to(tokens.dtype))
    return tokens.detach(), tensors[3].grad


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("p", "width"), [(8, 24), (14, 33)])
def test_value_and_temporal_gradient(p, width, autocast, tier):
    frames, tensors = stem(p, width)
    flow = torch.randn(2, 3, 7, width)
    truth = value_and_gradient(patch_embed_reference, frames, tensors, flow, torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = value_and_gradient(patch_embed_reference, frames, tensors, flow)
        found = value_and_gradient(patch_embed, frames, tensors, flow)
    for got, rounded, exact in zip(found, plain, truth, strict=True):
        assert got.dtype == torch.float32
        error_rule.hold(got, rounded, exact)


def test_float64_is_exact():
    frames, tensors = stem()
    flow = torch.randn(2, 3, 7, 24)
    sides = (value_and_gradient(f, frames, tensors, flow, torch.float64) for f in (patch_embed, patch_embed_reference))
    for got, wanted in zip(*sides, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_everything_trainable_gets_its_gradient_where_the_trunk_trains():
    frames, tensors = stem()
    for tensor in tensors:
        tensor.requires_grad_()
    patch_embed(frames, *tensors, MEAN, STD).square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in tensors)


def test_strided_frames_are_read_right():
    frames, tensors = stem()
    strided = torch.stack([frames, frames.flip(2)], 2)[:, :, 0]
    assert not strided.is_contiguous()
    assert torch.equal(patch_embed(strided, *tensors, MEAN, STD), patch_embed(frames, *tensors, MEAN, STD))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    frames, tensors = stem()
    weight, first, position, temporal, ln_weight, ln_bias = (x.to(dtype) for x in tensors)
    folded, bias = fold_normalisation(weight, MEAN, STD, dtype)
    args = (frames, folded, bias, first, position, temporal.requires_grad_(), ln_weight, ln_bias, 1e-5, dtype)
    torch.library.opcheck(torch.ops.aim.patch_embed.default, args)
    temporal = temporal.detach()
    tokens, product, mean, rstd = torch.ops.aim.patch_embed(*args[:5], temporal, *args[6:])
    args = (tokens, product, bias, first, position, temporal, ln_weight, mean, rstd)
    torch.library.opcheck(torch.ops.aim.patch_embed_backward.default, args)


def test_compiles_whole():
    frames, tensors = stem()
    flow = torch.randn(2, 3, 7, 24)
    expected = value_and_gradient(patch_embed, frames, tensors, flow)
    torch._dynamo.reset()
    compiled = torch.compile(patch_embed, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(value_and_gradient(compiled, frames, tensors, flow), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_empty_batch():
    frames, tensors = stem()
    assert patch_embed(frames[:0], *tensors, MEAN, STD).shape == (0, 3, 7, 24)


def test_what_cannot_be_is_named():
    frames, tensors = stem()
    with pytest.raises(ValueError, match="expected uint8 frames .* of 8-pixel patches, got torch.float32"):
        patch_embed(frames.float(), *tensors, MEAN, STD)
    with pytest.raises(ValueError, match=r"must be \[7, 24\] and \[2, 24\] for these frames"):
        patch_embed(frames[:, :2], *tensors, MEAN, STD)
