"""Neighbours that share norms: the same values and gradients as apart, and what is not theirs is not taken."""

import gc
import weakref

import pytest
import torch
from torch import nn

from aim_kernels import AIMBlock, AIMViTBlock, formed_together, hold_trunk, shared_norms
from aim_kernels.formed_together import formed_together as together
from aim_kernels.registration import OPERATORS

BF16 = torch.bfloat16


def blocks_of(kind, *numbers, **arguments):
    torch.manual_seed(0)
    made = nn.ModuleList(kind(32, 2, adapter_scale=0.5, drop_path=0.3, **arguments) for _ in range(*numbers))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def gradients(blocks, x, between=lambda x: x):
    blocks.zero_grad()
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    with together(blocks, leaf):
        y = leaf
        for block in blocks:
            y = block(between(y), cls_only=block is blocks[-1])
    y.pow(3).sum().backward()
    return [y, leaf.grad, *(parameter.grad for parameter in blocks.parameters() if parameter.requires_grad)]


def both(monkeypatch, *arguments, **named):
    """With and without sharing, where the stream is float32."""
    found = []
    monkeypatch.setattr(shared_norms, "_packs", lambda x, dtype: False)
    for shares in (False, True):
        monkeypatch.setattr(formed_together, "_gains", lambda x: True)
        monkeypatch.setattr(shared_norms, "gains", lambda x, shares=shares: shares)
        found.append(gradients(*arguments, **named))
    return found


@pytest.fixture
def runs(monkeypatch):
    """How often neighbours shared a norm."""
    seen, operator = [], OPERATORS["residual_norm"]
    monkeypatch.setattr(operator, "reference", lambda *given, plain=operator.reference: seen.append(1) or plain(*given))
    return seen


@pytest.mark.parametrize(("num_tadapter", "kind"), [(1, AIMBlock), (2, AIMBlock), (1, AIMViTBlock)])
@pytest.mark.parametrize("products", [torch.float32, BF16, torch.float8_e4m3fn])
def test_shared_or_apart(products, num_tadapter, kind, monkeypatch, runs):
    blocks, x = blocks_of(kind, 3, num_tadapter=num_tadapter), torch.randn(2, 3, 5, 32)
    hold_trunk(blocks, products)
    with torch.autocast("cpu", BF16, enabled=products != torch.float32):
        apart, shared = both(monkeypatch, blocks, x)
    assert len(runs) == 8
    for got, wanted in zip(shared, apart, strict=True):
        assert torch.equal(got, wanted)


def test_what_was_changed_on_the_way_is_normed_anew(monkeypatch):
    blocks, x = blocks_of(AIMBlock, 2), torch.randn(1, 2, 5, 32)
    for between in (lambda x: x * 2, lambda x: x.clone()):
        apart, shared = both(monkeypatch, blocks, x, between=between)
        for got, wanted in zip(shared, apart, strict=True):
            torch.testing.assert_close(got, wanted)


def test_a_graph_is_freed_once_nobody_reads_it(monkeypatch):
    """What a norm ahead holds of an output must not hold the output's graph."""
    monkeypatch.setattr(shared_norms, "gains", lambda x: True)
    blocks = blocks_of(AIMBlock, 1)
    gc.disable()
    try:
        out = blocks[0](torch.randn(1, 2, 5, 32, requires_grad=True))
        node = weakref.ref(out.grad_fn)
        del out
        assert node() is None
    finally:
        gc.enable()


def test_operators():
    x, branch, weight = torch.randn(6, 16), torch.randn(6, 16).bfloat16(), torch.rand(16)
    tests = ("test_schema", "test_faketensor")
    for scaled, plain in ((None, True), (torch.float8_e4m3fn, False)):
        operands = (x, branch, None, None, weight, weight, 1e-5, BF16, scaled, plain, BF16)
        torch.library.opcheck(torch.ops.aim.residual_norm.default, operands, test_utils=tests)
    operands = (branch, branch, weight, x[:, 0].contiguous(), x[:, 1].contiguous(), x, None, BF16, True, True)
    for eight_bits in (None, torch.float8_e4m3fn):
        more = {"eight_bits": eight_bits}
        torch.library.opcheck(torch.ops.aim.residual_norm_backward.default, operands, more, test_utils=tests)
