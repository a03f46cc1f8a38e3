"""The three fused sub-blocks against their references in float64: value, every gradient, every memory word."""

import pytest
import torch

from aim_kernels.adaptation import (
    joint_adaptation_reference,
    spatial_adaptation_reference,
    temporal_adaptation_reference,
)
from aim_kernels.joint_adaptation import joint_adaptation
from aim_kernels.spatial_adaptation import spatial_adaptation
from aim_kernels.temporal_adaptation import temporal_adaptation
from aim_kernels.weights import AdapterWeights, AttentionWeights, MLPWeights, NormWeights

B, T, N, D, HEADS, HIDDEN = 2, 3, 5, 16, 2, 4
MEMORY = ("fast", "balanced", "lean")
DROPS = {"none": None, "position": (1, 1, N, 1), "clip": (B, 1, 1, 1), "frame": (B, T, 1, 1)}


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def an_adapter(trainable="1111"):
    tensors = (normal(HIDDEN, D), normal(HIDDEN), normal(D, HIDDEN), normal(D))
    return AdapterWeights(*(x.requires_grad_(flag == "1") for x, flag in zip(tensors, trainable, strict=True)))


def attention_trunk():
    norm = NormWeights(normal(D), normal(D))
    return norm, AttentionWeights(normal(3 * D, D), normal(3 * D), normal(D, D), normal(D))


def mlp_trunk(gated=False):
    norm, gate = NormWeights(normal(D), normal(D)), (normal(4 * D, D), normal(4 * D)) if gated else ()
    return norm, MLPWeights(normal(4 * D, D), normal(4 * D), normal(D, 4 * D), normal(D), *gate)


def a_drop(kind):
    shape = DROPS[kind]
    return None if shape is None else torch.bernoulli(torch.full(shape, 0.5, dtype=torch.float64)) * 2


def agree(fused, reference, x, adapters):
    """Value and gradients of both functions at the same point."""
    leaves = [x, *(w for adapter in adapters if adapter is not None for w in adapter)]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    flow = normal(*x.shape)
    out, expected = fused(), reference()
    torch.testing.assert_close(out, expected)
    got = torch.autograd.grad(out, leaves, flow) if leaves else []
    wanted = torch.autograd.grad(expected, leaves, flow) if leaves else []
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("second", [False, True])
def test_temporal(second, drop, memory):
    x, trunk, factor = normal(B, T, N, D).requires_grad_(), attention_trunk(), a_drop(drop)
    adapter, adapter_in = an_adapter(), an_adapter() if second else None
    arguments = (x, *trunk, HEADS, adapter, adapter_in, factor)
    agree(
        lambda: temporal_adaptation(*arguments, memory=memory),
        lambda: temporal_adaptation_reference(*arguments),
        x,
        (adapter, adapter_in),
    )


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("adapted", [True, False])
def test_spatial(adapted, memory):
    x, trunk, adapter = normal(B, T, N, D).requires_grad_(), attention_trunk(), an_adapter() if adapted else None
    agree(
        lambda: spatial_adaptation(x, *trunk, HEADS, adapter, memory=memory),
        lambda: spatial_adaptation_reference(x, *trunk, HEADS, adapter),
        x,
        (adapter,),
    )


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh", "swiglu"])
def test_joint(activation, adapted, drop, memory):
    x, trunk = normal(B, T, N, D).requires_grad_(), mlp_trunk(activation == "swiglu")
    adapter = an_adapter() if adapted else None
    arguments = (x, *trunk, adapter, a_drop(drop), 0.5, activation)
    agree(
        lambda: joint_adaptation(*arguments, memory=memory),
        lambda: joint_adaptation_reference(*arguments),
        x,
        (adapter,),
    )


@pytest.mark.parametrize("trainable", ["0000", "1000", "0100", "0010", "0001", "0110"])
@pytest.mark.parametrize("flows", [True, False])
def test_any_subset_may_be_trainable(flows, trainable):
    x, adapter, adapter_in = (
        normal(B, T, N, D).requires_grad_(flows),
        an_adapter(trainable),
        an_adapter(trainable[::-1]),
    )
    trunk, mlp = attention_trunk(), mlp_trunk()
    if not flows and trainable == "0000":
        assert not temporal_adaptation(x, *trunk, HEADS, adapter).requires_grad
        return
    agree(
        lambda: temporal_adaptation(x, *trunk, HEADS, adapter, adapter_in),
        lambda: temporal_adaptation_reference(x, *trunk, HEADS, adapter, adapter_in),
        x,
        (adapter, adapter_in),
    )
    agree(
        lambda: spatial_adaptation(x, *trunk, HEADS, adapter),
        lambda: spatial_adaptation_reference(x, *trunk, HEADS, adapter),
        x,
        (adapter,),
    )
    agree(
        lambda: joint_adaptation(x, *mlp, adapter), lambda: joint_adaptation_reference(x, *mlp, adapter), x, (adapter,)
    )


def test_a_trainable_trunk_gets_its_gradient():
    trunk = attention_trunk()
    weights = [weight.requires_grad_() for record in trunk for weight in record]
    spatial_adaptation(normal(B, T, N, D), *trunk, HEADS, an_adapter()).sum().backward()
    assert all(weight.grad is not None for weight in weights)


def test_empty_batch_and_unknown_memory():
    x = normal(0, T, N, D).requires_grad_()
    assert joint_adaptation(x, *mlp_trunk(), an_adapter()).shape == x.shape
    with pytest.raises(ValueError, match="none of fast, balanced, lean"):
        joint_adaptation(x, *mlp_trunk(), an_adapter(), memory="small")
