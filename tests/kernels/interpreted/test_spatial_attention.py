"""The Triton kernels of spatial attention: several blocks of queries and keys, the last of them part full."""

import pytest
import torch

from aim_kernels import spatial_attention_triton as op

SHAPES = [(2, 17, 2, 32), (1, 197, 1, 64), (1, 70, 1, 80), (1, 130, 1, 128)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape, biased, dtype, hold_attention):
    f, n, h, d = shape
    torch.manual_seed(0)
    frames, dout = torch.randn(f, n, 3, h, d).to(dtype), torch.randn(f, n, h, d).to(dtype)
    bias = torch.randn(1, h, n, n) * 2 if biased else None
    out, lse = op.forward(frames, bias)
    hold_attention(
        (out, lse, op.backward(dout, frames, out, lse, bias)),
        frames,
        dout,
        split=lambda x: x.permute(2, 0, 3, 1, 4),
        join=lambda x: x.transpose(1, 2),
        bias=bias,
    )


def test_strided_frames():
    frames = torch.randn(3, 2, 20, 3, 1, 32)[:, 1]
    out, lse = op.forward(frames)
    torch.testing.assert_close(out, op.forward(frames.contiguous())[0])
    torch.testing.assert_close(op.backward(out, frames, out, lse), op.backward(out, frames.contiguous(), out, lse))
