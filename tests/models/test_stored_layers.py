"""What networks beside the trunk read of it, stored: the same step without a block, in a row of numbers a clip."""

import pytest
import torch

from aim_fast.errors import UsageError
from aim_fast.models.counting.flops import multiply_adds
from aim_fast.models.registry import create_model

SIZES = {"img_size": 32, "num_frames": 4, "num_classes": 5, "head_dropout": 0.0}
PARTS = {
    "evl": {"decoder_layers": 2, "decoder_dropout": 0.0},
    "side4video": {"side_width": 64},
    "dist": {"dist_width": 64, "dist_temporal": 8, "dist_pooling": 1},
}
beside = pytest.mark.parametrize("method", PARTS)


def made(method, trunk="vit_demo", **more):
    torch.manual_seed(0)
    model = create_model(trunk, method=method, **SIZES, **PARTS[method], **more)
    model.store_layers("all")
    return model


def clips():
    return torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@beside
@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("trunk", ["vit_demo", "vit_imagenet_demo"])
def test_a_step_from_what_is_stored_is_that_of_the_clips_to_the_bit(method, trunk, memory):
    model = made(method, trunk, memory=memory).train()
    statistics = {name: tensor.clone() for name, tensor in model.trained_statistics().items()}
    found = []
    for source in (clips(), model.frozen_features(clips())):
        model.zero_grad()
        for name, tensor in model.trained_statistics().items():
            tensor.copy_(statistics[name])
        logits = model(source)
        logits.square().sum().backward()
        found.append([logits, *(p.grad.clone() for _, p in model.trainable_parameters())])
        found[-1] += [tensor.clone() for tensor in model.trained_statistics().values()]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@beside
def test_halves_are_a_rounding_away_and_pixels_exact_in_them(method):
    model = made(method).eval()
    rows, wanted = model.frozen_features(clips()), model(clips())
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        torch.testing.assert_close(model(rows.to(dtype)), wanted, rtol=tolerance, atol=tolerance)
    if model.side.reads_pixels:
        pixels = rows.to(torch.bfloat16)[:, : clips()[0].numel()].to(torch.uint8)
        assert torch.equal(pixels, clips().flatten(1))


@pytest.mark.parametrize(
    ("method", "numbers", "part"),
    [
        ("evl", 2 * (4 * 17 * 64 + 2 * 3 * 16 * 16), "what evl reads of blocks 2 to 3 of 4"),
        ("side4video", 4 * (4 * 17 * 64) + 4 * 32 * 32 * 3, "what side4video reads of blocks 0 to 3 of 4, and pixels"),
        ("dist", 4 * (2 * 17 * 64) + 4 * 32 * 32 * 3, "what dist reads of blocks 0 to 3 of 4, and pixels"),
    ],
)
def test_a_row_holds_each_block_that_is_read_and_the_part_says_so(method, numbers, part):
    model = made(method)
    assert model.frozen_features(clips()).shape == (3, numbers)
    assert model.frozen_part == part


@beside
def test_no_block_runs_and_nothing_of_the_trunk_is_counted(method, monkeypatch):
    model = made(method).eval()
    rows, wanted = model.frozen_features(clips()), model(clips())
    whole, stored = multiply_adds(model), multiply_adds(model, stored=True)
    block = 2 * 17 * 64 * 3 * 64  # of qkv alone, of two frames at least
    assert stored < whole - model.depth // 2 * block
    for block in model.row:
        monkeypatch.setattr(block, "attend", None)
        monkeypatch.setattr(block, "expanded", None)
        monkeypatch.setattr(block, "forward", None)
    assert torch.equal(model(rows), wanted)


def test_trunks_that_turn_queries_and_have_registers_are_stored_too():
    model = made("evl", "timm:vit_small_patch16_dinov3").eval()
    assert torch.equal(model(model.frozen_features(clips())), model(clips()))


def test_evl_keeps_the_lower_blocks_where_nothing_else_is_asked_and_others_all():
    assert not create_model("vit_demo", method="evl", **SIZES, decoder_layers=1).stores_layers
    assert create_model("vit_demo", method="evl", **SIZES).stores_layers  # of a trunk of four blocks it reads all
    model = made("side4video")
    model.store_layers("lower")
    with pytest.raises(UsageError, match="use --cache-layers all, for side4video reads all blocks"):
        model.frozen_features(clips())
    for other in (create_model("vit_demo", **SIZES), create_model("uniformer_demo")):
        with pytest.raises(UsageError, match="--cache-layers is of networks beside a trunk"):
            other.store_layers("all")
