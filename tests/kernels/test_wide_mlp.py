"""The widened MLP as a function of its own: value and gradients in float64, what it keeps, and what it refuses."""

import pytest
import torch

from aim_kernels.weights import AdapterWeights, MLPWeights
from aim_kernels.widened_mlp import wide_mlp, wide_mlp_reference


def tensors(width=16, hidden=4, dtype=torch.float64, gated=False):
    torch.manual_seed(0)
    sizes = [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    sizes += sizes[:2] if gated else []
    mlp = MLPWeights(*(torch.randn(*s, dtype=dtype) for s in sizes))
    shapes = ((hidden, width), (hidden,), (width, hidden), (width,))
    adapter = AdapterWeights(*(torch.randn(*s, dtype=dtype, requires_grad=True) for s in shapes))
    return torch.randn(2, 3, width, dtype=dtype, requires_grad=True), mlp, adapter


@pytest.mark.parametrize("keep_hidden", [True, False])
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh", "swiglu"])
@pytest.mark.parametrize("adapted", [True, False])
def test_value_and_gradients(adapted, activation, dropped, keep_hidden):
    y, mlp, adapter = tensors(gated=activation == "swiglu")
    drop = torch.tensor([0.0, 1.25], dtype=torch.float64).view(2, 1, 1) if dropped else None
    adapter, leaves = (adapter, [y, *adapter]) if adapted else (None, [y])
    got = wide_mlp(y, mlp, adapter, drop, 0.5, activation, keep_hidden)
    wanted = wide_mlp_reference(y, mlp, adapter, drop, 0.5, activation)
    torch.testing.assert_close(got, wanted)
    flow = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad(got, leaves, flow), torch.autograd.grad(wanted, leaves, flow), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("activation", "columns"), [("quick_gelu", 68), ("swiglu", 132)])
@pytest.mark.parametrize(("keep_hidden", "kept"), [(True, 1), (False, 0)])
def test_keeps_the_hidden_state_once_or_never(keep_hidden, kept, activation, columns):
    y, mlp, adapter = tensors(gated=activation == "swiglu")
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (shapes.append(tuple(x.shape)), x)[1], lambda x: x):
        wide_mlp(y, mlp, adapter, activation=activation, keep_hidden=keep_hidden)
    assert shapes.count((6, columns)) == kept
    assert sum(len(shape) == 2 and shape[0] == 6 for shape in shapes) == 1 + kept  # beside the input


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu_tanh", "swiglu"])
def test_autocast_decides_the_dtype_and_compiles_whole(activation):
    y, mlp, adapter = tensors(dtype=torch.float32, gated=activation == "swiglu")
    torch._dynamo.reset()
    compiled = torch.compile(wide_mlp, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        out, again = (f(y, mlp, adapter, None, 1.0, activation) for f in (wide_mlp, compiled))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, again)
    again.float().sum().backward()
    assert (y.grad.dtype, adapter.w1.grad.dtype) == (torch.float32, torch.float32)


def test_wrong_weights_are_named():
    y, mlp, _ = tensors()
    with pytest.raises(ValueError, match=r"needs weights \[M, 16\] and \[16, M\]"):
        wide_mlp(y, mlp._replace(fc_weight=mlp.proj_weight))
    with pytest.raises(ValueError, match="swiglu of a first weight .* got no weight of gates"):
        wide_mlp(y, mlp, activation="swiglu")
    gated = mlp._replace(gate_weight=mlp.fc_weight, gate_bias=mlp.fc_bias)
    with pytest.raises(ValueError, match="quick_gelu of a first weight .* got one of gates"):
        wide_mlp(y, gated)
