"""Adapters in some of the blocks: which they are, and that nothing is computed or kept below the lowest."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.counting.saved_bytes import saved_bytes
from aim_fast.models.loading import load_weights
from aim_fast.models.methods.adapter_layers import resolve_layers
from aim_fast.models.registry import create_model

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_frames": 4, "num_classes": 5}
CLIPS = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tiny(**overrides):
    torch.manual_seed(0)
    model = create_model("aim_vit_demo", **{**TINY, **overrides})
    for name, parameter in model.named_parameters():
        if "D_fc2" in name or name == "temporal_embedding":
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


def backward_calls(model, x=CLIPS):
    """How often the backward of spatial attention runs for one loss: once for each block that a gradient reaches."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        model(x).logsumexp(-1).sum().backward()
    spatial = ("aim::spatial_attention_backward", "aim::readout_backward")  # the second is that of the last block
    return sum(row.count for row in seen.key_averages() if row.key in spatial)


@pytest.mark.parametrize(
    ("layers", "depth", "numbers"),
    [
        ("all", 3, (0, 1, 2)),
        ("bottom", 12, (0, 1, 2, 3, 4, 5)),
        ("top", 12, (6, 7, 8, 9, 10, 11)),
        ("top", 5, (3, 4)),
        ("alternate", 12, (1, 3, 5, 7, 9, 11)),
        (("7", 2), 12, (2, 7)),
        (("top",), 4, (2, 3)),
    ],
)
def test_words_and_numbers(layers, depth, numbers):
    assert resolve_layers(layers, depth) == numbers


@pytest.mark.parametrize(
    ("layers", "line"),
    [("topp", "did you mean 'top'"), ((4,), "from 0 to 3"), (("1", "1"), "each block once"), ((-1,), "no number of a")],
)
def test_what_is_no_block_is_named(layers, line):
    with pytest.raises(UsageError, match=line):
        create_model("aim_vit_demo", **TINY, adapter_layers=layers)


@pytest.mark.parametrize(
    ("layers", "place", "reached"),
    [
        # the gradient of a block's adapters needs the attention's only where something below still trains
        ("all", "lowest", 4),
        ("top", "lowest", 2),
        ("top", "stem", 4),
        ("top", "frozen", 1),
        ((3,), "frozen", 0),
        ((1,), "lowest", 3),
    ],
)
def test_no_gradient_is_computed_below_what_trains(layers, place, reached):
    adapters = ("joint",)
    assert backward_calls(tiny(adapter_layers=layers, temporal_place=place, adapters=adapters)) == reached


def test_a_linear_probe_computes_no_gradient_but_the_heads():
    model = tiny(adapters=())
    assert backward_calls(model) == 0
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("fc_cls"))


def test_a_frozen_bottom_keeps_nothing_for_backward():
    model = tiny(adapter_layers="top")
    assert saved_bytes(model, lambda: model.forward_bottom(CLIPS)) == 0
    assert not model.forward_bottom(CLIPS).requires_grad
    everywhere = saved_bytes(tiny(), lambda: tiny()(CLIPS))
    assert saved_bytes(model, lambda: model(CLIPS)) < 0.6 * everywhere


def test_the_temporal_embedding_moves_to_the_lowest_block_with_adapters():
    model = tiny(adapter_layers="top")
    bottom = model.forward_bottom(CLIPS)
    frozen = tiny(adapters=(), adapter_layers="all")
    frozen.load_state_dict(model.state_dict(), strict=False)
    nn.init.zeros_(frozen.temporal_embedding)
    stem = frozen.embed(CLIPS)
    torch.testing.assert_close(bottom, frozen.transformer(stem, 0, 2))
    expected = model.transformer(bottom + model.temporal_embedding[:, :, None], 2, 4)
    torch.testing.assert_close(model.forward_features(CLIPS), model.ln_post(expected[:, :, 0]))
    assert torch.equal(model.forward_features(bottom), model.forward_features(CLIPS))


@pytest.mark.parametrize("place", ["lowest", "frozen"])
def test_trains_with_the_gradients_of_autograd_in_plain_torch(place):
    grads = {}
    for backend in ("fused", "reference"):
        model = tiny(adapter_layers=(1, 3), temporal_place=place, backend=backend).double()
        model(CLIPS).logsumexp(-1).sum().backward()
        grads[backend] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert any("resblocks.3.S_Adapter" in name for name in grads["fused"])
    assert not any("resblocks.2.S_Adapter" in name for name in grads["fused"])
    assert ("temporal_embedding" in grads["fused"]) is (place == "lowest")
    for name, gradient in grads["reference"].items():
        torch.testing.assert_close(grads["fused"][name], gradient, rtol=1e-9, atol=1e-10)


def test_full_fine_tuning_trains_everything_but_the_time_of_a_space_only_model():
    assert all(p.requires_grad for p in tiny(tune="all").parameters())
    frozen = [name for name, p in tiny(tune="all", adapters=()).named_parameters() if not p.requires_grad]
    assert frozen == ["temporal_embedding"]
    assert backward_calls(tiny(tune="all", adapters=())) == 4


def test_checkpoints_with_adapters_elsewhere(tmp_path):
    torch.save(tiny(adapter_layers="top").state_dict(), tmp_path / "top.pth")
    with pytest.raises(WeightsError, match="make the model with adapter_layers=2,3"):
        load_weights(tiny(adapter_layers="bottom"), tmp_path / "top.pth")
    whole = tiny()
    lines = load_weights(whole, tmp_path / "top.pth").lines
    assert any("no adapters in block 0, 1" in line for line in lines)
    assert whole.transformer.resblocks[3].S_Adapter.D_fc2.weight.abs().max() > 0
