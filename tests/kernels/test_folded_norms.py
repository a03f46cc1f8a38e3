"""Norms whose affine is folded into the weights behind them: the same function, and never after those have changed."""

import copy

import pytest
import torch
from torch import nn

from aim_kernels import AIMBlock, AIMViTBlock, error_rule, formed_together, frozen_trunk, hold_trunk, shared_norms
from aim_kernels.folded_norms import fold_norms
from aim_kernels.formed_together import formed_together as together
from aim_kernels.registration import OPERATORS
from bench.published import published

BF16, FP64, EIGHT_BITS = torch.bfloat16, torch.float64, torch.float8_e4m3fn
KINDS = [(AIMBlock, {}), (AIMBlock, {"num_tadapter": 2}), (AIMBlock, {"adapters": ("joint",)})]
KINDS += [(AIMViTBlock, {"init_values": 0.5}), (AIMViTBlock, {"qk_norm": True})]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(formed_together, "_gains", lambda x: True)
    monkeypatch.setattr(shared_norms, "gains", lambda x: True)
    monkeypatch.setattr(frozen_trunk, "_reads_folded", lambda block: block.memory == "fast")


def blocks_of(kind=AIMBlock, width=48, **arguments):
    torch.manual_seed(0)
    made = nn.ModuleList(kind(width, 2, **{"adapter_scale": 0.5, "drop_path": 0.3, **arguments}) for _ in range(2))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def fold(blocks, dtype):
    """As :func:`hold_trunk` does in half precision."""
    for block in blocks:
        block.held_norms = fold_norms(block.norm_weights(), block.attention_weights()[1], block.mlp_weights()[1], dtype)
    return blocks


def gradients(blocks, x, lends=True, cls_only=True):
    blocks.zero_grad()
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    with together(blocks if lends else (), leaf):
        y = leaf
        for block in blocks:
            y = block(y, cls_only=cls_only and block is blocks[-1])
    y.pow(3).sum().backward()
    named = {name: parameter.grad for name, parameter in blocks.named_parameters() if parameter.requires_grad}
    return {"y": y, "x": leaf.grad, **named}


def lent(blocks, x):
    with together(blocks, x):
        return [block.lent.norm is not None for block in blocks]


def agree(found, wanted, **tolerance):
    for name, expected in wanted.items():
        torch.testing.assert_close(found[name], expected, **tolerance)


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize(("kind", "arguments"), KINDS)
def test_values_and_gradients(kind, arguments, shares, monkeypatch):
    monkeypatch.setattr(shared_norms, "gains", lambda x: shares)
    blocks, x = blocks_of(kind, **arguments).double(), torch.randn(2, 3, 5, 48, dtype=FP64)
    wanted = gradients(blocks, x, lends=False)
    assert lent(fold(blocks, FP64), x) == [True, True]
    agree(gradients(blocks, x), wanted, rtol=1e-6, atol=1e-9)


def test_the_error_is_that_of_the_published_structure():
    torch.manual_seed(0)
    blocks = nn.Sequential(*(AIMBlock(384, 6, adapter_scale=0.5) for _ in range(2)))
    for name, parameter in blocks.named_parameters():
        if "ln_" in name or parameter.requires_grad:
            nn.init.normal_(parameter, float("ln_" in name and "weight" in name), 0.2 if "ln_" in name else 0.02)
    x = torch.randn(1, 4, 20, 384)
    plain, truth = published(blocks), published(blocks).double()
    exact = gradients(truth, x.double(), lends=False, cls_only=False)
    held = hold_trunk(copy.deepcopy(blocks), BF16)
    assert lent(held, x) == [True, True]
    with torch.autocast("cpu", BF16):
        baseline, found = gradients(plain, x, lends=False, cls_only=False), gradients(held, x, cls_only=False)
    for name, wanted in exact.items():
        own = name.replace("block.", "")
        error_rule.hold(found[own], baseline[name], wanted, times=1.25, beside=0.0, name=name)


@pytest.mark.parametrize("arguments", [{}, {"num_tadapter": 2}])
def test_in_eight_bits_the_error_is_no_larger_than_of_norms_as_they_are(arguments):
    torch.manual_seed(0)
    blocks = nn.ModuleList(AIMBlock(384, 6, adapter_scale=0.5, **arguments) for _ in range(2))
    for name, parameter in blocks.named_parameters():
        if "ln_" in name or parameter.requires_grad:
            nn.init.normal_(parameter, float("ln_" in name and "weight" in name), 0.3 if "ln_" in name else 0.02)
    x, errors = torch.randn(1, 4, 20, 384), []
    exact = gradients(copy.deepcopy(blocks).double(), x.double(), lends=False, cls_only=False)
    held = hold_trunk(blocks, EIGHT_BITS)
    assert lent(held, x) == [True, True]
    for lends in (False, True):
        with torch.autocast("cpu", BF16):
            found = gradients(held, x, lends=lends, cls_only=False)
        errors.append(torch.stack([(found[name] - truth).norm() / truth.norm() for name, truth in exact.items()]))
    plain, folded = errors
    assert folded.median() <= 1.05 * plain.median()
    assert (folded / plain).max() <= 1.25


def test_one_vector_is_kept_and_no_norm_is_run_again(monkeypatch):
    seen = []

    def watched(name, plain):
        return lambda *given: seen.append((name, given[10:11])) or plain(*given)

    for name in ("layer_norm", "layer_norm_kept", "residual_norm"):
        operator = OPERATORS[name]
        monkeypatch.setattr(operator, "cpp", None)
        monkeypatch.setattr(operator, "reference", watched(name, operator.reference))
    blocks, x = hold_trunk(blocks_of(), BF16), torch.randn(1, 2, 5, 48)
    with torch.autocast("cpu", BF16):
        gradients(blocks, x, cls_only=False)
    assert [kept for name, kept in seen if name == "residual_norm"] == [(None,)] * 5
    assert "layer_norm_kept" not in dict(seen)


def test_what_changes_the_weights_ends_it():
    x = torch.randn(1, 2, 5, 48, dtype=FP64)

    def loaded(blocks):
        blocks.load_state_dict(blocks_of(AIMBlock).double().state_dict())

    def written(blocks):
        for block in blocks:
            with torch.no_grad():
                block.ln_2.bias.mul_(2)

    def replaced(blocks):
        for block in blocks:
            block.attn.in_proj_bias = nn.Parameter(torch.randn(144, dtype=FP64), requires_grad=False)

    for change in (loaded, written, replaced):
        blocks = fold(blocks_of().double(), FP64)
        assert lent(blocks, x) == [True, True]
        change(blocks)
        assert lent(blocks, x) == [False, False]
        agree(gradients(blocks, x), gradients(blocks, x, lends=False), rtol=1e-6, atol=1e-9)
        assert lent(fold(blocks, FP64), x) == [True, True]
        assert lent(copy.deepcopy(blocks), x) == [False, False]


def test_who_is_folded():
    x = torch.randn(1, 2, 5, 48)
    for dtype, folded in ((torch.float16, True), (BF16, True), (torch.float32, False), (EIGHT_BITS, True)):
        assert lent(hold_trunk(blocks_of(), dtype), x) == [folded] * 2
    for block in hold_trunk(hold_trunk(blocks_of(), BF16), EIGHT_BITS):
        assert all(block.held_norms.scaled)
        assert block.held_norms.attention.keys() == {"qkv_bias"}
    for memory in ("balanced", "lean"):
        assert not any(block.held_norms for block in hold_trunk(blocks_of(memory=memory), BF16))
    training = blocks_of()
    training[0].ln_1.requires_grad_(True)
    assert [block.held_norms is not None for block in hold_trunk(training, BF16)] == [False, True]
    assert not any(block.held_norms for block in hold_trunk(blocks_of(AIMViTBlock, qkv_bias=False), BF16))
    rms = blocks_of()[0]
    norms = rms.norm_weights()[0]._replace(bias=None), rms.norm_weights()[1]
    assert fold_norms(norms, rms.attention_weights()[1], rms.mlp_weights()[1], BF16) is None


def test_a_cpu_folds_nothing(monkeypatch):
    monkeypatch.undo()
    assert not any(block.held_norms for block in hold_trunk(blocks_of(), BF16))
