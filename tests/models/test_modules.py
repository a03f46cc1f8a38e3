"""The drop-in modules of aim_kernels: adapter, attention over time, droppath and the block, on their own."""

import pytest
import torch
from torch import nn

from aim_kernels import Adapter, AIMBlock, DropPath, TemporalAttention


def randomise(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module


@pytest.mark.parametrize("skip", [True, False])
def test_adapter_is_its_equation(skip):
    adapter = randomise(Adapter(16, 0.25, skip)).double()
    z = torch.randn(3, 5, 16, dtype=torch.float64)
    down, up = adapter.D_fc1, adapter.D_fc2
    hidden = z @ down.weight.T + down.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = hidden @ up.weight.T + up.bias + (z if skip else 0)
    torch.testing.assert_close(adapter(z), expected)
    assert down.weight.shape == (4, 16)


def test_temporal_attention_equals_multihead_attention_over_frames():
    attention = randomise(nn.MultiheadAttention(16, 4, batch_first=True)).double()
    x = torch.randn(2, 3, 5, 7, 16, dtype=torch.float64)  # leading shape [2, 3], T = 5, N = 7
    sequences = x.transpose(2, 3).reshape(-1, 5, 16)
    expected = attention(sequences, sequences, sequences)[0].reshape(2, 3, 7, 5, 16).transpose(2, 3)
    torch.testing.assert_close(TemporalAttention.sharing(attention)(x), expected)
    copied = TemporalAttention(16, 4).double()
    copied.load_state_dict(attention.state_dict())
    torch.testing.assert_close(copied(x), expected)
    assert not any(parameter.requires_grad for parameter in copied.parameters())


def test_sharing_holds_the_same_parameters():
    attention = nn.MultiheadAttention(16, 4)
    shared = TemporalAttention.sharing(attention)
    assert shared.in_proj_weight is attention.in_proj_weight
    assert shared.out_proj.weight is attention.out_proj.weight
    with pytest.raises(ValueError, match="pack them"):
        TemporalAttention.sharing(nn.MultiheadAttention(16, 4, kdim=8))


@pytest.mark.parametrize(
    ("mode", "shape"), [("position", (1, 1, 5, 1)), ("clip", (64, 1, 1, 1)), ("frame", (64, 4, 1, 1))]
)
def test_droppath_draws_in_the_form_asked_for(mode, shape):
    torch.manual_seed(0)
    drop = DropPath(0.25, mode)
    x = torch.ones(64, 4, 5, 2)
    assert drop(x).shape == shape
    factors = torch.cat([drop(x).flatten() for _ in range(4096 // drop(x).numel())])
    assert set(factors.tolist()) == {0.0, torch.tensor(1.0).div(0.75).item()}
    assert (factors == 0).double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert drop.eval()(x) is None
    assert DropPath(0.0, mode)(x) is None


@pytest.mark.parametrize(("mode", "shared"), [("position", (0, 1)), ("clip", (1, 2)), ("frame", (2,))])
def test_dropped_branches_leave_the_trunk_whole(mode, shared):
    """Where droppath drops, the block is its image block; elsewhere its branch is 1/keep as large; never in between."""
    torch.manual_seed(0)
    block = randomise(AIMBlock(8, 2, drop_path=0.5, drop_path_mode=mode, adapters=("joint",))).double()
    x = torch.randn(6, 4, 5, 8, dtype=torch.float64)
    branch = block(x).detach()
    plain = AIMBlock(8, 2, adapters=()).double()
    plain.load_state_dict(block.state_dict(), strict=False)
    kept = plain(x) + 2 * (block.eval()(x) - plain(x))
    dropped = torch.isclose(branch, plain(x)).all(-1)  # [B, T, N]
    assert torch.equal(torch.isclose(branch, kept).all(-1), ~dropped)
    assert 0 < dropped.double().mean() < 1
    for axis in shared:
        assert torch.equal(dropped, dropped.select(axis, 0).unsqueeze(axis).expand_as(dropped))


def test_temporal_branch_is_dropped_too():
    block = randomise(AIMBlock(8, 2, drop_path=0.999, drop_path_mode="clip", adapters=("temporal",)))
    plain = AIMBlock(8, 2, adapters=())
    plain.load_state_dict(block.state_dict(), strict=False)
    x = torch.randn(2, 4, 5, 8)
    torch.testing.assert_close(block(x), plain(x))
    assert not torch.allclose(block.eval()(x), plain(x), atol=1e-3)


def test_block_takes_any_leading_shape_and_number_of_frames():
    block = randomise(AIMBlock(8, 2, num_tadapter=2)).double().eval()
    x = torch.randn(2, 3, 4, 5, 8, dtype=torch.float64)
    whole = block(x)
    assert whole.shape == x.shape
    torch.testing.assert_close(block(x[1, 2]), whole[1, 2])
    torch.testing.assert_close(block(x.transpose(0, 1)), whole.transpose(0, 1))
    assert block(x[:, :0]).shape == (2, 0, 4, 5, 8)
    assert block(x[..., :1, :, :]).shape == (2, 3, 1, 5, 8)


def test_block_loads_a_clip_block_and_applies_it_frame_by_frame():
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock

    theirs = randomise(ResidualAttentionBlock(16, 4, act_layer=QuickGELU)).double()
    ours = AIMBlock(16, 4).double().eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected
    assert all("Adapter" in name for name in missing)
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x.flatten(0, 1)).view_as(x))


def test_block_freezes_the_image_block_only():
    block = AIMBlock(8, 2, num_tadapter=2)
    trained = {name.split(".")[0] for name, parameter in block.named_parameters() if parameter.requires_grad}
    assert trained == {"S_Adapter", "T_Adapter", "T_Adapter_in", "MLP_Adapter"}


def test_half_precision_block_stays_near_full_precision():
    torch.manual_seed(0)
    block = randomise(AIMBlock(64, 2, num_tadapter=2)).eval()
    x = torch.randn(2, 4, 17, 64)
    low = block.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    truth = block.float()(x.bfloat16().float())
    assert (low.float() - truth).norm() < 0.02 * truth.norm()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AIMBlock(10, 3), "num_heads 3 does not divide dim 10"),
        (lambda: TemporalAttention(8, 0), "num_heads 0"),
        (lambda: Adapter(8, 0.1), "no hidden unit"),
        (lambda: DropPath(1.0), r"not in \[0, 1\)"),
        (lambda: AIMBlock(8, 2)(torch.zeros(4, 5, 9)), r"expected a tensor \[..., T, N, 8\], got \[4, 5, 9\]"),
        (lambda: TemporalAttention(8, 2)(torch.zeros(5, 8)), "expected a tensor"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
