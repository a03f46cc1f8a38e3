"""Products in eight bits: rows with scales of their own, torch's product of the same numbers, and the gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from aim_kernels import (
    AIMBlock,
    AIMSwinBlock,
    AIMViTBlock,
    error_rule,
    hold_trunk,
    scaled_wide_product,
)
from aim_kernels.scaled_norm import scaled_norm
from aim_kernels.scaled_product import frozen_linear, product, scaled_products_missing, scaled_weight
from aim_kernels.scaled_rows import quantised, scaled_rows_reference
from aim_kernels.weights import UNSCALED, NormWeights
from bench.published import published

EIGHT_BITS = torch.float8_e4m3fn


def test_rows_are_rounded_to_three_bits_whatever_their_size():
    x = torch.randn(6, 40) * torch.tensor([1e-6, 1e-3, 1, 1e3, 1e6, 0])[:, None]
    values, scale = quantised(x)
    assert (values.dtype, scale.dtype, list(scale.shape)) == (EIGHT_BITS, torch.float32, [6, 1])
    restored = values.float() * scale
    assert ((restored - x).abs() <= x.abs() / 16 + scale * 2**-10).all()  # below 2^-6 numbers lie 2^-9 apart
    assert torch.equal(values.float().abs().amax(1)[:5], torch.full((5,), 448.0))
    assert not restored[5].any()


def test_what_is_not_a_number_stays_one_in_its_row_alone():
    x = torch.randn(3, 32)
    x[1, 4] = torch.nan
    found = product(x, torch.ones(16, 32), torch.zeros(16), scaled_weight(torch.ones(16, 32)), torch.float32)
    assert found.isnan().all(1).tolist() == [False, True, False]


def test_the_operators_pass_the_torch_contracts():
    x, norm = torch.randn(5, 24), (torch.rand(24), torch.randn(24))
    torch.library.opcheck(torch.ops.aim.scaled_rows.default, (x, EIGHT_BITS))
    for asked in ((False, False), (True, True)):
        operands = (x, *norm, 1e-5, EIGHT_BITS, torch.bfloat16, *asked)
        torch.library.opcheck(torch.ops.aim.scaled_norm.default, operands)
    products = torch.randn(5, 16), torch.rand(5, 1), torch.randn(32, 16), torch.rand(32, 1), torch.ones(2)
    for keep in (False, True):
        operands = (*products, torch.randn(32).bfloat16(), "gelu", keep)
        torch.library.opcheck(torch.ops.aim.scaled_wide_product.default, operands)
    operands = (*products, torch.ones(5, 32, dtype=torch.uint8), torch.bfloat16)
    torch.library.opcheck(torch.ops.aim.scaled_wide_product_backward.default, operands)


def test_what_writes_its_rows_itself_gives_those_of_the_operators_it_stands_for():
    x, norm = torch.randn(5, 24), NormWeights(torch.rand(24), torch.randn(24))
    rows, y, mean, rstd, kept = scaled_norm(x, norm, 1e-5, torch.bfloat16, plain=True, kept=True)
    wanted = torch.ops.aim.layer_norm(x, *norm, 1e-5, torch.float32)
    torch.testing.assert_close((y.float(), mean, rstd), wanted, rtol=4e-3, atol=4e-3)
    assert torch.equal(kept, x.bfloat16())
    expected = quantised(wanted[0])
    torch.testing.assert_close(rows.scale, expected.scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(rows.values.float(), expected.values.float(), rtol=0.13, atol=2e-3)  # a step, at a tie


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_no_row_exceeds_its_bound(activation):
    """Where a row of the input has the signs of the weight's largest row, and is as large as eight bits are."""
    weight, bias = torch.randn(32, 16), torch.randn(32)
    scaled = scaled_weight(weight, bias)
    largest = (weight.abs().sum(1)).argmax()
    x = weight[largest].sign() * torch.tensor([1e-4, 1.0, -1e4])[:, None]
    rows, u = quantised(x), x @ weight.t() + bias
    hidden, scale, slope = torch.ops.aim.scaled_wide_product(*rows, *scaled.rows, bias, activation, True)
    assert torch.equal(scale, rows.scale * scaled.rows.bound[0] + scaled.rows.bound[1])
    assert hidden.dtype == EIGHT_BITS
    assert hidden[1:].float().abs().amax() > 448 / 2  # the bound is reached to its margin
    assert relative(hidden.float() * scale, scaled_wide_product.activate(u, activation)) < 0.07
    full = torch.full_like(slope, 254)
    scaled = scaled_weight(weight.t().contiguous())  # whose transpose is what a backward reads
    du, scale = torch.ops.aim.scaled_wide_product_backward(*rows, *scaled.columns, full, torch.float32)
    assert 448 / 2 < du.float().abs().amax() <= 448
    assert relative(du.float() * scale, (x @ weight.t()) * (254 - 27) / 200) < 0.07


def test_a_product_is_that_of_the_restored_operands():
    x, weight, bias = torch.randn(2, 5, 64), torch.randn(32, 64), torch.randn(32)
    scaled = scaled_weight(weight)
    found = product(x, weight, bias, scaled, torch.float32)
    rows, scale = (part.double() for part in quantised(x.view(10, 64)))
    truth = (rows * scale) @ (scaled.rows.values.double() * scaled.rows.scale.double()).t() + bias.double()
    assert ((found.view(10, 32).double() - truth).norm() / truth.norm()) < 1e-6
    assert torch.allclose(found.view(10, 32), x.view(10, 64) @ weight.t() + bias, atol=2.0)


def test_torchs_own_product_gives_the_same_numbers():
    """It has one scale a matrix on a CPU: of rows that share theirs."""
    x, weight, bias = (torch.randn(*size) for size in ((8, 64), (32, 64), (32,)))
    x[:, 0], weight[:, 0] = 5, 6  # the largest of every row
    scaled, (values, scale) = scaled_weight(weight), quantised(x)
    (other, theirs, _), one = scaled.rows, torch.ones(())
    product_of_values = torch._scaled_mm(values, other.t(), one, one, out_dtype=torch.float32)
    wanted = product_of_values * scale[0] * theirs[0] + bias
    torch.testing.assert_close(product(x, weight, bias, scaled, torch.float32), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_gradient_is_that_of_the_weight_as_it_is_quantised_along_its_columns(autocast):
    x, weight, bias = torch.randn(2, 5, 64, requires_grad=True), torch.randn(32, 64), torch.randn(32)
    bias.requires_grad_()
    scaled, flow = scaled_weight(weight), torch.randn(2, 5, 32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = frozen_linear(x, weight, bias, scaled)
    assert out.dtype == (torch.bfloat16 if autocast else torch.float32)
    out.backward(flow.to(out.dtype))
    values, scale = quantised(flow.to(out.dtype).view(10, 32))
    wanted = (values.double() * scale) @ (scaled.columns.values.double() * scaled.columns.scale).t()
    assert ((x.grad.view(10, 64).double() - wanted).norm() / wanted.norm()) < (4e-3 if autocast else 1e-6)
    torch.testing.assert_close(bias.grad, flow.to(out.dtype).float().sum((0, 1)), rtol=1e-2, atol=1e-2)


def test_a_weight_that_trains_or_has_an_odd_side_is_not_quantised():
    assert scaled_weight(torch.randn(32, 24)) is None
    assert scaled_weight(torch.randn(32, 32, requires_grad=True)) is None
    block = AIMBlock(32, 4).requires_grad_(True)
    assert hold_trunk(block, EIGHT_BITS).scaled == UNSCALED


@pytest.mark.parametrize("assign", [False, True])
def test_eight_bits_are_made_again_of_weights_that_are_loaded(assign):
    held, other = hold_trunk(AIMBlock(32, 4), EIGHT_BITS), AIMBlock(32, 4)
    nn.init.normal_(other.mlp.c_fc.weight)
    before = held.scaled
    adapters = {name: x for name, x in other.state_dict().items() if "Adapter" in name}
    held.load_state_dict(adapters, strict=False)
    assert held.scaled is before
    wanted = hold_trunk(copy.deepcopy(other).bfloat16(), EIGHT_BITS).scaled
    held = copy.deepcopy(nn.Sequential(held))
    held.load_state_dict({f"0.{name}": x for name, x in other.bfloat16().state_dict().items()}, assign=assign)
    for found, made in zip(tree_leaves(held[0].scaled), tree_leaves(wanted), strict=True):
        assert torch.equal(found.float(), made.float())
    assert "before_loading" not in held[0].__dict__


def test_eight_bits_go_where_the_block_goes():
    held = hold_trunk(AIMBlock(32, 4), EIGHT_BITS)
    state = held.state_dict()
    moved = held.to("meta").scaled
    assert {x.device.type for x in tree_leaves(moved)} == {"meta"}
    assert moved.fc.rows.values.dtype == EIGHT_BITS
    assert held.state_dict().keys() == state.keys()


def test_a_block_holds_its_trunk_in_bf16_and_twice_in_eight_bits():
    held = hold_trunk(AIMBlock(32, 4), EIGHT_BITS)
    assert held.attn.in_proj_weight.dtype == torch.bfloat16
    assert held.S_Adapter.D_fc1.weight.dtype == torch.float32
    for weight, sides in zip(held.scaled, ((96, 32), (32, 32), (128, 32), (32, 128)), strict=True):
        assert (weight.rows.values.shape, weight.columns.values.shape) == (sides, sides[::-1])
        assert weight.rows.values.dtype == EIGHT_BITS


def relative(got, truth):
    return ((got.double() - truth.double()).norm() / truth.double().norm()).item()


def run(block, x, flow, autocast):
    block.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = block(x)
    out.backward(flow.to(out.dtype))
    named = {name.replace("block.", ""): p.grad for name, p in block.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad, **named}


@pytest.fixture(scope="module")
def blocks():
    torch.manual_seed(0)
    model = nn.Sequential(*(AIMBlock(768, 12, num_tadapter=2) for _ in range(2)))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.02)
    return model


@pytest.fixture(scope="module")
def case(blocks):
    """Input and gradient of its output, and the true gradients."""
    generator = torch.Generator().manual_seed(1)
    x, flow = (torch.randn(1, 4, 20, 768, generator=generator) for _ in range(2))
    return x, flow, run(published(blocks).double(), x.double(), flow.double(), False)


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_gradient_error_of_b16_sized_blocks(memory, blocks, case):
    """Eight bits lose a tenth where bf16 loses a hundredth: docs/speed.md has the figures."""
    x, flow, truth = case
    held = hold_trunk(copy.deepcopy(blocks), EIGHT_BITS)
    for block in held:
        block.memory = memory
    found = run(held, x, flow, True)
    assert found.keys() == truth.keys()
    errors = {name: relative(found[name], exact) for name, exact in truth.items()}
    assert max(errors.values()) <= 0.13, max(errors, key=errors.__getitem__)
    assert 0.03 <= sorted(errors.values())[len(errors) // 2] <= 0.085  # bf16: 0.007


BLOCKS = {
    "plain": lambda: AIMBlock(64, 4),
    "LayerScale": lambda: AIMViTBlock(64, 4, init_values=0.5),
    "normalised queries and keys": lambda: AIMViTBlock(64, 4, qk_norm=True),
    "Swin": lambda: AIMSwinBlock(64, 4, side=4, num_steps=2, window_size=2, shifted=True),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_kind_of_block_is_near_its_reference(name):
    torch.manual_seed(0)
    block = BLOCKS[name]()
    for parameter in block.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05)
    x, flow = torch.randn(2, 2, 16, 64), torch.randn(2, 2, 16, 64)
    plain = copy.deepcopy(block)
    plain.backend = "reference"
    truth = run(plain, x, flow, False)
    held = hold_trunk(block, EIGHT_BITS)
    assert all(held.scaled)
    found = run(held, x, flow, True)
    assert found.keys() == truth.keys()
    for part, exact in truth.items():
        assert relative(found[part], exact) <= 0.2, part


def test_a_trunk_without_adapters_is_multiplied_in_eight_bits_alone():
    torch.manual_seed(0)
    block = AIMBlock(64, 4, adapters=())
    x = torch.randn(1, 2, 5, 64)
    exact, held = block(x), hold_trunk(copy.deepcopy(block), EIGHT_BITS)
    assert 1e-3 < relative(held(x), exact) < 0.1


def test_an_older_card_is_named(monkeypatch):
    monkeypatch.setattr("aim_kernels.scaled_product.architecture_of", lambda device: 86)
    assert scaled_products_missing(torch.device("cuda")) == "its compute capability is 8.6, below 8.9"
    assert scaled_products_missing(torch.device("cpu")) is None


def test_a_scale_is_kept_to_the_error_of_eight_bits():
    """The operator's truth, as a tuning takes it: float64, which keeps what the rounding takes."""
    x = torch.randn(7, 48)
    values, scale = torch.ops.aim.scaled_rows(x, EIGHT_BITS)
    truth, exact = scaled_rows_reference(x.double(), torch.float64)
    error_rule.hold(scale, exact.float(), exact)
    assert 0.01 < relative(values, truth) < 0.04
