"""Where the trunk itself trains: the reference's gradients of every weight, through the operators, keeping little."""

import copy

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from aim_fast.models.counting.saved_bytes import saved_bytes
from aim_kernels import AIMBlock, hold_trunk


def trained_block(dim=64, **overrides):
    torch.manual_seed(0)
    block = AIMBlock(dim, 2, **overrides)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    return block.requires_grad_(True)


def gradients(block, x):
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    out = block(leaf)
    out.square().sum().backward()
    return [out.detach(), leaf.grad, *(p.grad for p in block.parameters())]


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
@pytest.mark.parametrize(
    "overrides",
    [{"num_tadapter": 2, "drop_path": 0.4, "activation": "gelu"}, {"adapters": ()}, {"adapters": ("spatial",)}],
    ids=["all", "none", "spatial"],
)
def test_every_gradient_is_the_references(overrides, memory):
    block = trained_block(**overrides).double()
    truth = copy.deepcopy(block)
    truth.backend, block.memory = "reference", memory
    x = torch.randn(2, 3, 5, 64, dtype=torch.float64)
    for got, wanted in zip(gradients(block, x), gradients(truth, x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_attention_runs_on_the_operators():
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        gradients(trained_block(), torch.randn(1, 2, 5, 64))
    counts = {row.key: row.count for row in seen.key_averages()}
    for name in ("temporal_attention", "spatial_attention"):
        assert counts[f"aim::{name}"] == counts[f"aim::{name}_backward"] == 1


def test_each_memory_word_keeps_less_than_the_one_before():
    kept = {}
    for memory in ("fast", "balanced", "lean"):
        block = trained_block(dim=128, memory=memory)
        x = torch.randn(1, 8, 50, 128)
        kept[memory] = saved_bytes(block, lambda block=block, x=x: block(x.clone().requires_grad_()))
    assert kept["lean"] < 0.5 * kept["balanced"] < 0.5 * 0.75 * kept["fast"]


def test_a_trained_trunk_keeps_float32_masters_in_mixed_precision():
    block = hold_trunk(trained_block(), torch.bfloat16)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        out = block(torch.randn(1, 2, 5, 64))
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in block.parameters())


def test_compiles_whole():
    block, x = trained_block(), torch.randn(1, 3, 5, 64)
    expected = gradients(block, x)
    block.zero_grad()
    found = gradients(torch.compile(block, fullgraph=True, backend="aot_eager"), x)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)
