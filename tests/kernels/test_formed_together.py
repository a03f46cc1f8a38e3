"""Blocks whose adapters are formed together are the same: values, gradients, and weights that change meanwhile."""

import pytest
import torch
from torch import nn

from aim_kernels import AIMBlock, AIMViTBlock, formed_together, hold_trunk, shared_norms
from aim_kernels.formed_adapter import form
from aim_kernels.formed_together import draw_at_once
from aim_kernels.formed_together import formed_together as together
from aim_kernels.rotation import Rotation
from aim_kernels.spatial_readout import spatial_readout

MEMORIES = ("fast", "balanced", "lean")


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(formed_together, "_gains", lambda x: True)
    monkeypatch.setattr(shared_norms, "gains", lambda x: True)


def blocks_of(*kinds, **arguments):
    torch.manual_seed(0)
    made = nn.ModuleList(kind(24, 2, adapter_scale=0.5, drop_path=0.3, **arguments) for kind in kinds)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.double()


def gradients(blocks, x, formed, passes=1):
    """Of the sum of several passes, the second with other weights where there is one."""
    blocks.zero_grad()
    out = []
    for number in range(passes):
        torch.manual_seed(number)
        with together(blocks if formed else (), x):
            y = x
            for block in blocks:
                y = block(y, cls_only=block is blocks[-1])
        out.append(y)
    sum(y.pow(3).sum() for y in out).backward()
    return [*out, *(parameter.grad for parameter in blocks.parameters() if parameter.requires_grad)]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(
    ("kinds", "arguments"),
    [
        ((AIMBlock,) * 3, {"num_tadapter": 2}),
        ((AIMViTBlock,) * 2, {"qk_norm": True, "init_values": 0.1}),
        ((AIMViTBlock, AIMBlock), {"adapters": ("joint", "temporal")}),
    ],
)
def test_values_and_gradients(kinds, arguments, memory):
    blocks, x = blocks_of(*kinds, memory=memory, **arguments), torch.randn(2, 3, 5, 24, dtype=torch.float64)
    for got, wanted in zip(gradients(blocks, x, True, 2), gradients(blocks, x, False, 2), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def test_weights_that_change_between_passes_are_formed_anew():
    blocks, x = blocks_of(AIMBlock, AIMBlock), torch.randn(1, 2, 3, 24, dtype=torch.float64)
    gradients(blocks, x, True)
    for parameter in blocks.parameters():
        parameter.data.mul_(0.5)
    for got, wanted in zip(gradients(blocks, x, True), gradients(blocks, x, False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", ["position", "clip", "frame"])
def test_the_same_is_dropped(mode):
    blocks, x = blocks_of(AIMBlock, AIMBlock, drop_path_mode=mode), torch.randn(4, 3, 5, 24, dtype=torch.float64)
    for got, wanted in zip(gradients(blocks, x, True), gradients(blocks, x, False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def test_one_draw_keeps_as_often_as_each_is_asked_to():
    torch.manual_seed(0)
    kept = (1.0, 0.95, 0.7, 0.1)
    for probability, drawn in zip(kept, draw_at_once(kept, (100_000, 1), torch.empty(1)), strict=True):
        assert set(drawn.unique().tolist()) <= {0.0, 1.0}
        assert drawn.mean().item() == pytest.approx(probability, abs=0.005)


def test_what_is_lent_and_to_whom():
    x = torch.randn(1, 2, 3, 24, dtype=torch.float64)
    blocks = blocks_of(*[AIMBlock] * 3)
    blocks[1].memory, blocks[2].memory = "balanced", "lean"
    with together(blocks, x):
        assert [set(block.lent.formed) for block in blocks] == [{"T_Adapter", "S_Adapter", "MLP_Adapter"}] * 3
        assert [block.lent.stacked is not None for block in blocks] == [True, False, False]
        assert [len(block.drop_path.lent) for block in blocks] == [2] * 3
    for change in ({"backend": "reference"}, {"requires_grad": True}):
        assert not any(block.lent or block.drop_path.lent for block in blocks)
        other = blocks_of(AIMBlock)[0]
        other.requires_grad_(change.pop("requires_grad", False))
        vars(other).update(change)
        with together([*blocks, other], x):
            assert not any(block.lent for block in (*blocks, other))


def test_blocks_in_eight_bits_are_lent_adapters_that_no_frozen_weights_are_stacked_with():
    torch.manual_seed(0)
    blocks, x = nn.ModuleList(AIMBlock(32, 2, adapter_scale=0.5) for _ in range(2)), torch.randn(2, 3, 5, 32)
    for parameter in blocks.parameters():
        nn.init.normal_(parameter, std=0.2)
    hold_trunk(blocks, torch.float8_e4m3fn)
    with together(blocks, x):
        assert all(len(block.lent.formed) == 3 and block.lent.stacked is None for block in blocks)
    for got, wanted in zip(gradients(blocks, x, True), gradients(blocks, x, False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item())


def test_one_that_is_formed_is_no_plain_one():
    block, x = blocks_of(AIMBlock)[0], torch.randn(1, 2, 3, 24, dtype=torch.float64)
    adapter = form(block.adapter_uses()["S_Adapter"], x.dtype)
    table = Rotation(torch.randn(2, 12, dtype=torch.float64))
    with pytest.raises(ValueError, match="give its own weights"):
        spatial_readout(x, *block.attention_weights(), 2, adapter, rotation=table)
