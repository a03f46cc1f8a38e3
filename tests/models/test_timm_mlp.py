"""The MLPs that blocks of timm's have: which are fused, and that they are timm's own with the adapter beside them."""

from functools import partial

import pytest
import torch
from timm.layers import GELUTanh, GluMlp, QuickGELU, SwiGLU
from timm.models.vision_transformer import Block
from torch import nn

from aim_fast.models.trunks.timm_block import Place, TimmBlock
from aim_kernels import formed_together, shared_norms
from aim_kernels.folded_norms import fold_norms
from aim_kernels.joint_adaptation import joint_adaptation

GATES_FIRST, GATES_LAST = (partial(GluMlp, gate_last=last) for last in (False, True))
TANH = partial(nn.GELU, approximate="tanh")
# What timm's block is made with, and what its MLP then runs as; None where it is plain.
KINDS = {
    "gelu": ({"act_layer": nn.GELU}, "gelu"),
    "gelu by tanh of timm": ({"act_layer": GELUTanh}, "gelu_tanh"),
    "gelu by tanh of torch": ({"act_layer": TANH}, "gelu_tanh"),
    "quick gelu": ({"act_layer": QuickGELU}, "quick_gelu"),
    "relu": ({"act_layer": nn.ReLU}, None),
    "norm inside": ({"scale_mlp_norm": True}, None),
    "packed, gates first": ({"mlp_layer": GATES_FIRST, "act_layer": nn.SiLU}, "swiglu"),
    "packed, gates last": ({"mlp_layer": GATES_LAST, "act_layer": nn.SiLU}, "swiglu"),
    "packed, no biases": ({"mlp_layer": GATES_LAST, "act_layer": nn.SiLU, "proj_bias": False}, "swiglu"),
    "packed, norm inside": ({"mlp_layer": GATES_FIRST, "act_layer": nn.SiLU, "scale_mlp_norm": True}, None),
    "packed, sigmoid": ({"mlp_layer": GATES_LAST, "act_layer": nn.Sigmoid}, None),
    "gates apart": ({"mlp_layer": SwiGLU, "act_layer": nn.SiLU}, "swiglu"),
    "gates apart, no biases": ({"mlp_layer": SwiGLU, "act_layer": nn.SiLU, "proj_bias": False}, "swiglu"),
    "gates apart, norm inside": ({"mlp_layer": SwiGLU, "act_layer": nn.SiLU, "scale_mlp_norm": True}, None),
    "gates apart, gelu": ({"mlp_layer": SwiGLU, "act_layer": nn.GELU}, None),
}


def a_block(kind, width=24):
    arguments, runs_as = KINDS[kind]
    torch.manual_seed(0)
    theirs = Block(width, 2, qkv_bias=True, init_values=0.5, **arguments)
    block = TimmBlock(theirs, Place(nn.Module(), None, 0), width, adapter_scale=0.5).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    return block, runs_as


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_runs_fused_what_the_operators_have(kind):
    block, runs_as = a_block(kind)
    assert block.plain_mlp is (runs_as is not None)
    x = torch.randn(2, 3, 5, 24, dtype=torch.float64)
    truth = block.ls2(block.mlp(block.norm2(x)))
    for backend in ("fused", "reference"):
        block.backend = backend
        torch.testing.assert_close(block.expand(x), truth, rtol=1e-9, atol=1e-9)
    assert truth.std() > 0.1
    if runs_as is not None:
        assert block.activation == runs_as


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
@pytest.mark.parametrize("kind", [kind for kind, (_, runs_as) in KINDS.items() if runs_as])
def test_with_the_adapter_beside_it_values_and_gradients_are_those_of_timms_modules(kind, memory):
    block, _ = a_block(kind)
    x = torch.randn(2, 3, 5, 24, dtype=torch.float64, requires_grad=True)
    drop = torch.tensor([0.0, 1.25], dtype=torch.float64).view(2, 1, 1, 1)
    fused = joint_adaptation(x, *block.mlp_weights(), **block._joint(drop), memory=memory)
    plain = block._beside_mlp(x, drop)
    leaves, flow = [x, *block.MLP_Adapter.parameters()], torch.randn_like(plain)
    found, wanted = (torch.autograd.grad(y, leaves, flow) for y in (fused, plain))
    for ours, theirs in zip((fused, *found), (plain, *wanted), strict=True):
        assert (ours - theirs).norm() <= 1e-8 * theirs.norm()


@pytest.mark.parametrize(("kind", "folds"), [("gelu", True), ("gates apart", True), ("packed, gates last", False)])
def test_neighbours_on_a_gpu_give_the_same(kind, folds, monkeypatch):
    """Their norms shared and, where nothing is put together anew, folded."""
    monkeypatch.setattr(formed_together, "_gains", lambda x: True)
    monkeypatch.setattr(shared_norms, "gains", lambda x: True)
    blocks = nn.ModuleList(a_block(kind)[0] for _ in range(2))
    for block in blocks:
        weights = block.attention_weights()[1], block.mlp_weights()[1]
        block.held_norms = fold_norms(block.norm_weights(), *weights, torch.float64)
        assert (block.held_norms is not None) is folds
    x, found = torch.randn(2, 3, 5, 24, dtype=torch.float64), []
    for lends in (False, True):
        blocks.zero_grad()
        with formed_together.formed_together(blocks if lends else (), x):
            y = x
            for block in blocks:
                y = block._adapt_mlp(y, None, "fast")
        y.square().sum().backward()
        found.append([y, *(weight.grad for block in blocks for weight in block.MLP_Adapter.parameters())])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_a_gated_mlp_that_trains_gets_every_gradient():
    block, _ = a_block("gates apart")
    block.mlp.requires_grad_(True)
    x = torch.randn(1, 2, 3, 24, dtype=torch.float64)
    plain = torch.autograd.grad(block.ls2(block.mlp(block.norm2(x))).square().sum(), list(block.mlp.parameters()))
    fused = torch.autograd.grad(block.expand(x).square().sum(), list(block.mlp.parameters()))
    for ours, theirs in zip(fused, plain, strict=True):
        assert (ours - theirs).norm() <= 1e-8 * theirs.norm()
        assert theirs.norm() > 0
