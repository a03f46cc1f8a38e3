"""The AIM block on timm's ViT: timm's own block at the adapters' start, and one function whatever runs it."""

from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from aim_kernels import hold_trunk
from aim_kernels.vit_block import AIMViTBlock

X = torch.randn(2, 3, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PARTS = [
    {},
    {"init_values": 0.5},
    {"qk_norm": True, "init_values": 0.5},
    {"qkv_bias": False, "proj_bias": False},
]


def pair(parts, **overrides):
    """timm's block with weights drawn at random, and ours with the same."""
    torch.manual_seed(0)
    theirs = Block(32, 4, norm_layer=partial(nn.LayerNorm, eps=1e-6), **{"qkv_bias": True, **parts}).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = AIMViTBlock(32, 4, num_tadapter=2, **parts, **overrides).double()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected
    assert all("_Adapter" in name for name in missing)
    return theirs, ours


def train(block, x=X):
    """Output and gradients with adapters that do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if "_Adapter" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    torch.manual_seed(2)
    leaf = x.clone().requires_grad_()
    out = block(leaf)
    out.square().sum().backward()
    return {"out": out.detach(), "x": leaf.grad} | {
        n: p.grad for n, p in block.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("parts", PARTS)
def test_is_timms_block_frame_by_frame_while_the_adapters_are_new(parts, backend):
    theirs, ours = pair(parts, backend=backend)
    torch.testing.assert_close(ours(X), theirs(X.flatten(0, 1)).view(X.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_fused_gradients_are_those_of_plain_torch_also_of_a_trained_trunk(parts, memory):
    for tune in (False, True):
        runs = []
        for backend in ("fused", "reference"):
            block = pair(parts, backend=backend, memory=memory, drop_path=0.4, drop_path_mode="frame")[1]
            runs.append(train(block.requires_grad_(True) if tune else block))
        assert runs[0].keys() == runs[1].keys()
        for name, truth in runs[1].items():
            torch.testing.assert_close(runs[0][name], truth, rtol=1e-9, atol=1e-9 * float(truth.abs().max() + 1))


@pytest.mark.parametrize("parts", PARTS)
def test_trains_in_bf16_within_its_precision(parts):
    truth = train(pair(parts)[1])
    block = hold_trunk(pair(parts)[1].float(), torch.bfloat16)
    assert {block.attn.qkv.weight.dtype, block.mlp.fc2.weight.dtype} == {torch.bfloat16}
    got = train(block, X.float())
    assert got.keys() == truth.keys()
    for name, gradient in got.items():
        assert gradient.dtype == torch.float32
        assert (gradient.double() - truth[name]).norm() <= 0.05 * truth[name].norm(), name
