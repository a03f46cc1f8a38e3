"""The Triton kernels of spatial attention: several blocks of queries and keys, the last of them part full."""

import pytest
import torch

from aim_fast.tuning.calls import Call, Layout
from aim_fast.tuning.selection import Selection
from aim_kernels import spatial_attention_triton as op
from aim_kernels.block_shapes import APART, BlockShape, trying

SHAPES = [(2, 17, 2, 32), (1, 197, 1, 64), (1, 70, 1, 80), (1, 130, 1, 128)]
WHOLE = [  # F, N, h, d, and a tile of all keys
    ((2, 197, 1, 64), BlockShape(32, 256, 8, 2)),
    ((1, 129, 2, 48), BlockShape(16, 256, 8, 2)),
    ((1, 256, 1, 16), BlockShape(64, 256, 8, 2)),
    ((2, 1, 2, 20), BlockShape(32, 64, 4, 2)),
    ((1, 50, 2, 64), BlockShape(64, 64, 4, 2)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape, biased, dtype, hold_attention):
    hold(shape, biased, dtype, APART, hold_attention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("shape", "tile"), WHOLE, ids=str)
def test_backward_in_one_kernel(shape, tile, dtype, hold_attention):
    hold(shape, False, dtype, tile, hold_attention)


def hold(shape, biased, dtype, tile, hold_attention):
    f, n, h, d = shape
    torch.manual_seed(0)
    frames, dout = torch.randn(f, n, 3, h, d).to(dtype), torch.randn(f, n, h, d).to(dtype)
    bias = torch.randn(1, h, n, n) * 2 if biased else None
    out, lse = op.forward(frames, bias)
    hold_attention(
        (out, lse, backward(tile, dout, frames, out, lse, bias)),
        frames,
        dout,
        split=lambda x: x.permute(2, 0, 3, 1, 4),
        join=lambda x: x.transpose(1, 2),
        bias=bias,
    )


def backward(tile, dout, frames, out, lse, bias=None):
    """With a tile of the one kernel, or APART."""
    with trying({}) as trial:
        op.backward_shape(frames.shape[-1], 0, frames.dtype.itemsize, frames.shape[1])
    with trying(dict.fromkeys(trial.asked, tile)):
        return op.backward(dout, frames, out, lse, bias)


@pytest.mark.parametrize("tile", [APART, BlockShape(16, 64, 4, 2)])
def test_strided_frames(tile):
    frames = torch.randn(3, 2, 20, 3, 1, 32)[:, 1]
    out, lse = op.forward(frames)
    torch.testing.assert_close(out, op.forward(frames.contiguous())[0])
    contiguous = backward(tile, out, frames.contiguous(), out, lse)
    torch.testing.assert_close(backward(tile, out, frames, out, lse), contiguous)


@pytest.mark.parametrize("tile", [APART, BlockShape(32, 64, 4, 2)])
def test_scores_far_below_zero_stay_finite(tile):
    """exp(−lse), the weight that a key of padding would have, is beyond float32."""
    frames = torch.randn(1, 40, 3, 1, 16)
    frames[:, :, 0], frames[:, :, 1] = 10, -10
    out, lse = op.forward(frames)
    assert lse.max() < -200
    dq, dk, dv = backward(tile, torch.ones_like(out), frames, out, lse).unbind(2)
    assert dq.isfinite().all()
    assert dk.isfinite().all()
    torch.testing.assert_close(dv, torch.ones_like(dv), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("apart", "kernels"), [(1.0, ["backward"]), (0.5, ["backward", "backward_queries", "backward_keys"])]
)
def test_a_tuning_takes_one_kernel_or_two_of_which_all_are_right(apart, kernels):
    half, width = torch.float16, 2 * 16
    qkv, out = (Layout((1, 2, 40, m * width), (80 * m * width, 40 * m * width, m * width, 1), half) for m in (3, 1))
    lse = Layout((1, 2, 2, 40), (160, 80, 40, 1), torch.float32)
    call = Call("spatial_attention_backward", (out, qkv, out, lse, 2, "triton", None))
    two = "backward (0, 0, 0, 0)"
    clock = lambda functions: {name: apart if two in name else 1.0 for name in functions}  # noqa: E731
    choice = Selection(torch.device("cpu"), clock).choose(call)
    assert {tried.fault for tried in choice.tried} == {None}
    assert any(two in tried.name for tried in choice.tried)
    assert [launch.kernel.removeprefix("spatial_attention_") for launch in choice.shapes] == kernels
