"""The last block read at its class token alone: the value, every gradient and the drops of the whole block."""

import copy

import pytest
import torch
from torch import nn

from aim_kernels import AIMBlock, AIMViTBlock, error_rule, hold_trunk
from aim_kernels.formed_adapter import form
from aim_kernels.spatial_readout import spatial_readout
from bench.published import published

B, T, N, D = 2, 3, 5, 32


def a_block(kind=AIMBlock, **overrides):
    torch.manual_seed(0)
    block = kind(D, 2, adapter_scale=0.5, **overrides)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.double()


def run(block, x, cls_only):
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    out = block(leaf, cls_only=cls_only)
    cls = out[..., :1, :]
    (cls * torch.linspace(-1, 2, cls.numel(), dtype=cls.dtype).view(cls.shape)).sum().backward()
    gradients = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
    block.zero_grad()
    return out, leaf.grad, gradients


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
@pytest.mark.parametrize("mode", ["position", "clip", "frame"])
@pytest.mark.parametrize("adapters", [("spatial", "temporal", "joint"), ("temporal",), ()])
def test_value_gradients_and_drops_are_those_of_the_whole_block(adapters, mode, memory):
    block = a_block(adapters=adapters, drop_path=0.4, drop_path_mode=mode, memory=memory).train()
    x = torch.randn(B, T, N, D, dtype=torch.float64)
    out, dx, gradients = run(block, x, cls_only=True)
    whole, dx_whole, gradients_whole = run(block, x, cls_only=False)
    assert out.shape == (B, T, 1, D)
    torch.testing.assert_close(out, whole[:, :, :1])
    torch.testing.assert_close(dx, dx_whole)
    assert gradients.keys() == gradients_whole.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients_whole[name])


@pytest.mark.parametrize("others", [{"qk_norm": True}, {"init_values": 0.5, "qkv_bias": False}])
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_other_blocks_and_the_reference_agree(backend, others):
    block, x = a_block(AIMViTBlock, backend=backend, **others), torch.randn(T, N, D, dtype=torch.float64)
    out, dx, gradients = run(block, x, cls_only=True)
    whole, dx_whole, gradients_whole = run(block, x, cls_only=False)
    assert out.shape == (T, 1, D)
    torch.testing.assert_close((out, dx), (whole[:, :1], dx_whole))
    torch.testing.assert_close(gradients, gradients_whole)


def test_a_trained_trunk_gets_its_gradients():
    block, x = a_block(), torch.randn(B, T, N, D, dtype=torch.float64)
    block.requires_grad_(True)
    _, _, gradients = run(block, x, cls_only=True)
    _, _, wanted = run(block, x, cls_only=False)
    torch.testing.assert_close(gradients, wanted)
    assert gradients.keys() == dict(block.named_parameters()).keys()


def test_an_empty_batch_and_a_compiled_step():
    block = a_block().float()
    assert block(torch.randn(0, T, N, D), cls_only=True).shape == (0, T, 1, D)
    torch._dynamo.reset()
    compiled, x = torch.compile(block, fullgraph=True, backend="aot_eager"), torch.randn(B, T, N, D)
    for precision in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            eager, other = run(block, x, cls_only=True), run(compiled, x, cls_only=True)
        torch.testing.assert_close(other[:2], eager[:2])
        assert [name.removeprefix("_orig_mod.") for name in other[2]] == list(eager[2])


def test_gradient_error_is_no_more_than_the_published_one():
    """Sharp attention, B/16's width: a score sums 768 products here, where a formed key's sums 64."""
    torch.manual_seed(0)
    block = AIMBlock(768, 12)
    for parameter in block.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.02)
    block.attn.in_proj_weight.data.mul_(2)
    x, flow = torch.randn(1, 2, 50, 768), torch.randn(1, 2, 1, 768)

    def gradients(side, x, autocast, **options):
        side, leaf = copy.deepcopy(side), x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = side(leaf, **options)[:, :, :1]
        out.backward(flow.to(out.dtype))
        named = {name.replace("block.", ""): p.grad for name, p in side.named_parameters() if p.grad is not None}
        return {name: grad.double() for name, grad in {"x": leaf.grad, **named}.items()}

    row = nn.Sequential(block)
    truth = gradients(published(row).double(), x.double(), autocast=False)
    baseline = gradients(published(row), x, autocast=True)
    found = gradients(hold_trunk(copy.deepcopy(block), torch.bfloat16), x, autocast=True, cls_only=True)
    for name, exact in truth.items():
        error_rule.hold(found[name.removeprefix("0.")], baseline[name], exact, times=1.25, beside=0.0, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    z, weight, bias = torch.randn(4, 5, 16, dtype=dtype), torch.randn(48, 16), torch.randn(48)
    torch.library.opcheck(torch.ops.aim.readout.default, (z, weight, bias, 2))
    torch.library.opcheck(torch.ops.aim.readout.default, (z, weight, bias, 2, torch.randn(2, 5)))
    _, p = torch.ops.aim.readout(z, weight, bias, 2)
    torch.library.opcheck(torch.ops.aim.readout_backward.default, (z[:, 0], z, p, weight, bias))


def test_keeps_its_input_and_the_probabilities_alone():
    block, x = a_block().float(), torch.randn(B, T, N, D, requires_grad=True)
    kept = []
    adapter = form(block.adapter_uses()["S_Adapter"], torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        spatial_readout(x, *block.attention_weights(), block.num_heads, adapter)
    owned = {tensor.data_ptr() for tensor in (*block.parameters(), *adapter)}
    sizes = sorted(t.numel() for t in kept if t.data_ptr() not in owned)
    assert sizes == sorted([x.numel(), B * T * N, B * T * N, B * T * D, B * T * 2 * N])
