"""Values of relative positions summed over maps between frames, beside the form that gathers a row of every pair."""

import pytest
import torch

from aim_kernels.relative_values import neighbour_maps, relative_values, relative_values_reference


@pytest.mark.parametrize(("side", "frames"), [(1, 2), (2, 0), (3, 4), (7, 1)])
def test_sums_and_gradients_are_those_of_every_pair(side, frames):
    torch.manual_seed(0)
    maps = torch.rand(2, frames, side**2, side**2, dtype=torch.float64, requires_grad=True)
    table = torch.randn((2 * side - 1) ** 2, 5, dtype=torch.float64, requires_grad=True)
    found, wanted = relative_values(maps, table), relative_values_reference(maps, table)
    torch.testing.assert_close(found, wanted)
    g = torch.randn_like(found)
    torch.testing.assert_close(*(torch.autograd.grad(out, (maps, table), g) for out in (found, wanted)))


def test_maps_are_means_over_heads_of_softmax_with_the_frame_before_and_after():
    torch.manual_seed(0)
    qkv = torch.randn(2, 3, 1 + 4, 3 * 8, dtype=torch.float64)
    before, after = neighbour_maps(qkv, 2, 1)
    q, k = (part[:, :, 1:].unflatten(-1, (2, 4)).transpose(2, 3) for part in qkv.chunk(3, -1)[:2])  # [B, T, h, P, d]
    torch.testing.assert_close(before[:, 1], (q[:, 2] @ k[:, 1].mT / 2).softmax(-1).mean(1))
    torch.testing.assert_close(after[:, 0], (q[:, 0] @ k[:, 1].mT / 2).softmax(-1).mean(1))
    assert before.shape == after.shape == (2, 2, 4, 4)


@pytest.mark.parametrize(("patches", "rows"), [(4, 25), (5, 9)])
def test_a_table_of_another_square_is_refused(patches, rows):
    with pytest.raises(ValueError, match="takes no table"):
        relative_values(torch.rand(1, 1, patches, patches), torch.rand(rows, 3))
