"""The stream in 24 bits: as near to float32 as is promised, and float32 to all who do not know of it."""

import copy
import ctypes

import pytest
import torch
from torch import nn

from aim_kernels import AIMBlock, error_rule, formed_together, frozen_trunk, hold_trunk, shared_norms
from aim_kernels.formed_together import formed_together as together
from aim_kernels.packed import Packed, packed_reference, unpacked_reference
from bench.published import published

BF16 = torch.bfloat16


def round_trip(x):
    return unpacked_reference(*packed_reference(x))


def test_error_of_a_number():
    torch.manual_seed(0)
    x = torch.randn(1 << 16) * torch.randn(1 << 16).mul(20).exp2()
    error = ((round_trip(x) - x).abs().double() / x.abs().double()).where(x.abs() > 1e-37, 0.0)
    assert error.max() <= 2**-15
    assert error.median() <= 2**-17
    assert (round_trip(x) - x).mean().abs() <= 2**-19 * x.abs().mean()  # no drift


def test_numbers_at_the_ends():
    largest, least = torch.finfo(torch.float32).max, torch.finfo(torch.float32).smallest_normal
    bits = torch.tensor([0x3F7FFFFF, 0x3F800000, 0x3F808000, 0x3F807FFF, 0x00000001, 0x007FFFFF], dtype=torch.int32)
    x = torch.cat([bits.view(torch.float32), torch.tensor([0.0, largest * 0.99, least, 1 / 3])])
    for sign in (1.0, -1.0):
        torch.testing.assert_close(round_trip(sign * x), sign * x, rtol=2**-15, atol=1e-40)
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan])
    torch.testing.assert_close(round_trip(odd), odd, equal_nan=True)


@pytest.fixture
def both():
    torch.manual_seed(0)
    wide, mean, rstd = torch.randn(6, 8), torch.randn(6), torch.rand(6) + 0.5
    high, low = packed_reference(wide)
    return Packed(torch.Size((2, 3, 8)), high, low, mean, rstd), (wide / rstd[:, None] + mean[:, None]).view(2, 3, 8)


def test_it_is_its_value_to_every_operator(both):
    packed, value = both
    assert (packed.shape, packed.dtype, packed.device) == (value.shape, torch.float32, value.device)
    for read in (lambda x: x, lambda x: x * 2, lambda x: x[:, 1], lambda x: x.flatten(0, 1) @ torch.ones(8, 2)):
        torch.testing.assert_close(read(packed) + 0, read(value), rtol=2**-14, atol=1e-5)
    assert "Packed" in repr(packed)
    packed[:, 1] = 7.0
    assert (packed + 0)[:, 1].eq(7.0).all()
    assert packed._version > 0  # so that nobody takes a norm of before for its own


def test_a_gradient_comes_through_what_reads_it(both):
    packed, value = both
    for x in (packed, value):
        x.requires_grad_()
        x.pow(2).sum().backward()
    torch.testing.assert_close(packed.grad + 0, value.grad, rtol=2**-14, atol=1e-5)


def test_a_kernel_past_the_dispatcher_reads_the_value(both):
    packed, value = both
    pointer = packed.contiguous().data_ptr()
    assert pointer
    read = (ctypes.c_float * value.numel()).from_address(pointer)
    torch.testing.assert_close(torch.tensor(list(read)).view(value.shape), value, rtol=2**-14, atol=1e-5)
    assert packed.data_ptr() == pointer


@pytest.fixture
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(formed_together, "_gains", lambda x: not torch.compiler.is_compiling())
    monkeypatch.setattr(
        shared_norms, "gains", lambda x: not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled()
    )
    monkeypatch.setattr(frozen_trunk, "_reads_folded", lambda block: block.memory == "fast")


def blocks_of(number, width):
    blocks = nn.Sequential(*(AIMBlock(width, 2, adapter_scale=0.5, drop_path=0.2) for _ in range(number)))
    for name, parameter in blocks.named_parameters():
        if "ln_" in name or parameter.requires_grad:
            nn.init.normal_(parameter, float("ln_" in name and "weight" in name), 0.2 if "ln_" in name else 0.05)
    return blocks


def gradients(blocks, x, lends=True, between=lambda x: x):
    blocks.zero_grad()
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    with together(blocks if lends else (), leaf):
        y = leaf
        for block in blocks:
            y = block(between(y))
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return {
        "x": leaf.grad,
        **{name: parameter.grad for name, parameter in blocks.named_parameters() if parameter.requires_grad},
    }


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("changes", [lambda x: x * 0.5, lambda x: x.clone(), lambda x: x[:, :, [1, 0, 2, 3]]])
def test_a_module_between_two_blocks_reads_and_changes_a_stream_in_float32(changes):
    torch.manual_seed(0)
    blocks, x, kinds = hold_trunk(blocks_of(2, 48), BF16), torch.randn(1, 2, 4, 48), []

    def between(y):
        kinds.append(type(y))
        return changes(y) if y.grad_fn is not None else y

    with torch.autocast("cpu", BF16):
        found = gradients(blocks, x, between=between)
        wanted = gradients(blocks, x, lends=False, between=between)
    assert kinds == [torch.Tensor, Packed, torch.Tensor, torch.Tensor]
    for name, exact in wanted.items():
        assert (found[name] - exact).norm() <= 0.03 * exact.norm(), name


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("adapters", [("spatial", "temporal", "joint"), ("spatial", "joint")])
def test_no_sub_block_hands_a_packed_stream_to_one_that_reads_float32(monkeypatch, adapters):
    blocks, made, forms, starts = [AIMBlock(48, 2, adapters=adapters) for _ in range(2)], [], [], Packed.__init__
    monkeypatch.setattr(Packed, "__init__", lambda self, *parts: (made.append(self), starts(self))[1])
    monkeypatch.setattr(Packed, "_formed", lambda self: forms.append(self) or unpacked_reference(*self.parts))
    with torch.autocast("cpu", BF16):
        gradients(hold_trunk(nn.Sequential(*blocks), BF16), torch.randn(1, 2, 4, 48))
    assert bool(made) == ("temporal" in adapters)
    assert not forms


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_in_inference_mode_a_stream_that_a_hook_writes_to_is_normalised_anew():
    torch.manual_seed(0)
    blocks, x, kinds = hold_trunk(blocks_of(2, 48), BF16).eval(), torch.randn(1, 2, 4, 48), []

    def run(lends, writes):
        with torch.inference_mode(), torch.autocast("cpu", BF16), together(blocks if lends else (), x):
            y = blocks[0](x)
            kinds.append(type(y))
            if writes:
                y[:, :, 1] *= -3.0
            return blocks[1](y)

    for writes in (False, True):
        found, wanted = run(True, writes), run(False, writes)
        assert (found - wanted).norm() <= 0.01 * wanted.norm()
    assert kinds == [Packed, torch.Tensor] * 2


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("wraps", [False, True])
def test_what_is_compiled_by_itself_is_given_a_stream_in_float32(wraps):
    torch.manual_seed(0)
    torch._dynamo.reset()
    blocks, x = hold_trunk(blocks_of(3, 48), BF16).eval(), torch.randn(1, 2, 4, 48)
    with torch.autocast("cpu", BF16):
        wanted = gradients(blocks, x, lends=False)["x"]
        if wraps:
            blocks[1] = torch.compile(blocks[1], backend="eager")
        else:
            blocks[1].compile(backend="eager")
        found = gradients(blocks, x)["x"]
    assert (found - wanted).norm() <= 0.03 * wanted.norm()


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.slow
def test_over_twelve_blocks_gradients_err_no_more_than_with_a_stream_in_float32(monkeypatch):
    """Squared errors of several draws: a single one is a throw of the dice."""
    squares = torch.zeros(3, 145, dtype=torch.float64)
    for seed in range(6):
        torch.manual_seed(seed)
        blocks, x = blocks_of(12, 96).eval(), torch.randn(2, 3, 12, 96)
        exact = gradients(published(copy.deepcopy(blocks)).double(), x.double(), lends=False)
        plain, held = published(copy.deepcopy(blocks)), hold_trunk(copy.deepcopy(blocks), BF16)
        with torch.autocast("cpu", BF16):
            sides = [gradients(plain, x, lends=False), gradients(held, x)]
            with monkeypatch.context() as patched:
                patched.setattr(shared_norms, "_packs", lambda x, dtype: False)
                sides.append(gradients(held, x))
        for row, side in zip(squares, sides, strict=True):
            named = {name.replace("block.", ""): gradient for name, gradient in side.items()}
            errors = [error_rule.errors(named[name.replace("block.", "")], g, g)[0] for name, g in exact.items()]
            row += torch.tensor(errors, dtype=torch.float64).square()
    rule, packed, wide = squares.sqrt()
    assert (packed / rule).median() <= 1.05
    assert (packed / rule).max() <= 1.25
    assert (packed / wide).median() <= 1.05
