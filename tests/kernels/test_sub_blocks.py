"""The three fused sub-blocks against their references in float64: value, every gradient, every memory word."""

import pytest
import torch

from aim_kernels.adaptation import (
    joint_adaptation_reference,
    spatial_adaptation_reference,
    temporal_adaptation_reference,
)
from aim_kernels.joint_adaptation import joint_adaptation
from aim_kernels.rotation import Rotation
from aim_kernels.spatial_adaptation import spatial_adaptation
from aim_kernels.spatial_readout import spatial_readout
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


def attention_trunk(rms=False):
    norm = NormWeights(normal(D), None if rms else normal(D))
    return norm, AttentionWeights(normal(3 * D, D), normal(3 * D), normal(D, D), normal(D))


def mlp_trunk(gated=False, rms=False):
    norm = NormWeights(normal(D), None if rms else normal(D))
    gate = (normal(4 * D, D), normal(4 * D)) if gated else ()
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


def a_rotation(interleaved, heads=()):
    angles = normal(*heads, N - 1, D // HEADS // 2)
    return Rotation(torch.cat([angles.sin(), angles.cos()], -1), interleaved)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("heads", [(), (HEADS,)], ids=["", "heads"])
@pytest.mark.parametrize(("interleaved", "biased"), [(None, True), (False, False), (True, True)])
def test_spatial_with_rotation_and_bias(interleaved, biased, heads, memory):
    x, trunk, adapter = normal(B, T, N, D).requires_grad_(), attention_trunk(), an_adapter()
    rotation = None if interleaved is None else a_rotation(interleaved, heads)
    scores = {"rotation": rotation, "bias": normal(1, HEADS, N, N) if biased else None}

    def reference():
        return spatial_adaptation_reference(x, *trunk, HEADS, adapter, **scores)

    agree(lambda: spatial_adaptation(x, *trunk, HEADS, adapter, memory=memory, **scores), reference, x, (adapter,))
    read = spatial_readout(x, *trunk, HEADS, adapter, **scores)
    flow, leaves = normal(*read.shape), (x, *adapter)
    torch.testing.assert_close(read, reference()[:, :, :1])
    wanted = torch.autograd.grad(reference()[:, :, :1], leaves, flow)
    torch.testing.assert_close(torch.autograd.grad(read, leaves, flow), wanted)


@pytest.mark.parametrize("fused", [spatial_adaptation, spatial_readout])
def test_a_table_and_a_bias_that_train_get_their_gradients(fused):
    x, trunk, adapter, rotation = normal(B, T, N, D), attention_trunk(), an_adapter(), a_rotation(True)
    leaves = rotation.table.requires_grad_(), normal(1, HEADS, N, N).requires_grad_()
    scores = {"rotation": rotation, "bias": leaves[1]}
    got = fused(x, *trunk, HEADS, adapter, **scores)
    wanted = spatial_adaptation_reference(x, *trunk, HEADS, adapter, **scores)[:, :, : got.shape[2]]
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (got, wanted))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("function", [spatial_adaptation, spatial_readout])
def test_a_bias_of_another_shape_is_named(function):
    x, trunk = normal(B, T, N, D), attention_trunk()
    with pytest.raises(ValueError, match=rf"expected a bias \[1, {HEADS}, {N}, {N}\], got \[{HEADS}, {N}, {N}\]"):
        function(x, *trunk, HEADS, bias=normal(HEADS, N, N))


@pytest.mark.parametrize("memory", MEMORY)
def test_under_an_rms_norm(memory):
    x, trunk = normal(B, T, N, D).requires_grad_(), attention_trunk(True)
    mlp, adapter = mlp_trunk(rms=True), an_adapter()
    for fused, reference, frozen in (
        (temporal_adaptation, temporal_adaptation_reference, (*trunk, HEADS)),
        (spatial_adaptation, spatial_adaptation_reference, (*trunk, HEADS)),
        (joint_adaptation, joint_adaptation_reference, mlp),
    ):
        agree(
            lambda f=fused, w=frozen: f(x, *w, adapter, memory=memory),
            lambda f=reference, w=frozen: f(x, *w, adapter),
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


@pytest.mark.parametrize(
    ("gated", "activation", "said"),
    [(False, "swiglu", "no weight of gates"), (True, "gelu", "one of gates"), (False, "relu", "'relu' is none of")],
)
def test_an_activation_that_the_mlp_has_not_is_named(gated, activation, said):
    with pytest.raises(ValueError, match=said):
        joint_adaptation(normal(B, T, N, D), *mlp_trunk(gated), activation=activation)


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
