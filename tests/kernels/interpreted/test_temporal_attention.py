"""The Triton kernels of temporal attention: T that does and does not divide the tile, odd head dimensions."""

import pytest
import torch

from aim_kernels import temporal_attention  # noqa: F401  (registers the operators)
from aim_kernels.registration import OPERATORS

FORWARD, BACKWARD = OPERATORS["temporal_attention"].triton, OPERATORS["temporal_attention_backward"].triton
SHAPES = [(1, 8, 9, 2, 64), (2, 1, 65, 1, 32), (1, 10, 7, 1, 80), (1, 48, 2, 1, 96), (1, 64, 1, 1, 128)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape, dtype, hold_attention):
    b, t, n, h, d = shape
    torch.manual_seed(0)
    qkv = torch.randn(b, t, n, 3 * h * d).to(dtype)
    dout = torch.randn(b, t, n, h * d).to(dtype)
    out, lse = FORWARD(qkv, h)
    hold_attention(
        (out, lse, BACKWARD(dout, qkv, out, lse, h)),
        qkv,
        dout,
        split=lambda x: x.unflatten(-1, (3, h, d)).permute(3, 0, 2, 4, 1, 5),
        join=lambda x: x.permute(0, 3, 1, 2, 4).flatten(-2),
    )


def test_strided_input():
    qkv = torch.randn(4, 2, 3, 2 * 96)[..., 5 : 5 + 96].transpose(0, 1)
    out, lse = FORWARD(qkv, 1)
    torch.testing.assert_close(out, FORWARD(qkv.contiguous(), 1)[0])
    dout = torch.randn(2, 4, 3, 32)
    torch.testing.assert_close(BACKWARD(dout, qkv, out, lse, 1), BACKWARD(dout, qkv.contiguous(), out, lse, 1))
