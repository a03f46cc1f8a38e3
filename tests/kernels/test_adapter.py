"""The fused adapter against its reference in float64, with and without what surrounds it."""

import pytest
import torch

from aim_kernels.adaptation import adapter_reference
from aim_kernels.adapter import adapter
from aim_kernels.weights import AdapterWeights


def tensors(hidden=6, width=16, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((hidden, width), (hidden,), (width, hidden), (width,))
    return AdapterWeights(*(torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("surrounded", [True, False])
@pytest.mark.parametrize("hidden", [1, 16, 21])
def test_value_and_gradients(hidden, surrounded, skip):
    weights = tensors(hidden)
    z, residual = (torch.randn(2, 3, 5, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    factor = torch.tensor([0.0, 1.25], dtype=torch.float64).view(2, 1, 1, 1)
    leaves = [z, *weights]
    if surrounded:
        leaves.append(residual)
        got = adapter(z, weights, skip, 0.5, residual, factor)
        wanted = residual + factor * 0.5 * (adapter_reference(z, weights) + skip * z)
    else:
        got, wanted = adapter(z, weights, skip), adapter_reference(z, weights) + skip * z
    torch.testing.assert_close(got, wanted)
    flow = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad(got, leaves, flow), torch.autograd.grad(wanted, leaves, flow), strict=True):
        torch.testing.assert_close(a, b)


def test_only_what_is_trainable_gets_a_gradient():
    weights = tensors()
    weights.w1.requires_grad_(False)
    z = torch.randn(4, 16, dtype=torch.float64)
    adapter(z, weights).sum().backward()
    assert weights.w1.grad is None
    assert weights.w2.grad is not None


def test_autocast_decides_the_dtype_and_masters_get_their_own():
    weights = tensors(dtype=torch.float32)
    z = torch.randn(4, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = adapter(z, weights)
    out.float().sum().backward()
    assert (out.dtype, z.grad.dtype, weights.w2.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_what_cannot_be_is_named():
    weights = tensors()
    with pytest.raises(ValueError, match=r"needs W1 \[H, D\]"):
        adapter(torch.randn(4, 8, dtype=torch.float64), weights)
    with pytest.raises(ValueError, match="give the residual too"):
        adapter(torch.randn(4, 16, dtype=torch.float64), weights, factor=torch.ones(4, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("surrounded", [True, False])
def test_opcheck(surrounded, dtype):
    z, residual = torch.randn(5, 16, dtype=dtype), torch.randn(5, 16, dtype=torch.promote_types(dtype, torch.float32))
    around = (residual, torch.rand(5)) if surrounded else (None, None)
    low = [weight.detach() for weight in tensors(dtype=dtype)]
    torch.library.opcheck(torch.ops.aim.adapter.default, (z, *low, True, 0.5 if surrounded else 1.0, *around))
    g, u = residual if surrounded else z, torch.randn(5, 6, dtype=dtype)
    rest = (True, 0.5 if surrounded else 1.0, around[1], surrounded)
    torch.library.opcheck(torch.ops.aim.adapter_backward.default, (g, u, low[0], low[2], *rest))


def test_trains_compiled_whole_as_eager():
    torch._dynamo.reset()
    weights, z, residual = tensors(), *(torch.randn(2, 5, 16, dtype=torch.float64) for _ in range(2))
    factor = torch.tensor([0.0, 1.25], dtype=torch.float64).view(2, 1, 1)
    found = []
    for function in (adapter, torch.compile(adapter, fullgraph=True, backend="aot_eager")):
        leaf = z.clone().requires_grad_()
        out = function(leaf, weights, True, 0.5, residual, factor)
        found.append((out, *torch.autograd.grad(out.square().sum(), (leaf, *weights))))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_a_gradient_for_the_residual_alone():
    weights = [weight.detach() for weight in tensors()]
    z, residual = torch.randn(4, 16, dtype=torch.float64), torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    adapter(z, AdapterWeights(*weights), residual=residual).sum().backward()
    assert torch.equal(residual.grad, torch.ones_like(residual))
