"""The Triton kernels of attention within groups: windows, shifted ones with their mask, and time, tiles part full."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels import group_attention_triton as op
from aim_kernels.group_attention import group_attention_backward_reference, group_attention_reference

# frames, groups, length, own bias a group, heads, head dimension
SHAPES = [(2, 4, 49, True, 2, 32), (3, 5, 16, False, 1, 32), (2, 3, 9, False, 2, 24), (70, 1, 4, False, 1, 16)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape, dtype):
    f, g, length, own, h, d = shape
    torch.manual_seed(0)
    qkv, dout = torch.randn(f, g * length, 3 * h * d).to(dtype), torch.randn(f, g * length, h * d).to(dtype)
    table = torch.randperm(g * length).reshape(g, length).int()
    bias = torch.randn(g if own else 1, h, length, length)
    bias[..., -1] = -100.0  # as a shifted window hides a token

    def plain(dtype):
        x, b = (t.to(dtype, copy=True).requires_grad_() for t in (qkv, bias))
        q, k, v = x[:, table.flatten()].reshape(f, g, length, 3, h, d).permute(3, 0, 1, 4, 2, 5)
        out = ((q @ k.transpose(-1, -2)) * d**-0.5 + b).softmax(-1) @ v
        out = out.transpose(2, 3).reshape(f, g * length, h * d)[:, table.flatten().argsort()]
        out.backward(dout.to(dtype))
        return out, x.grad, b.grad

    out = op.forward(qkv, table, bias, h)
    dqkv, dbias = op.backward(dout, qkv, table, bias, h, True)
    for got, rounded, truth in zip((out, dqkv, dbias), plain(dtype), plain(torch.float64), strict=True):
        error_rule.hold(got, rounded, truth)
    alone, none = op.backward(dout, qkv, table, bias, h, False)
    assert torch.equal(alone, dqkv)
    assert none.numel() == 0


def test_the_reference_formula_is_what_the_kernels_compute():
    qkv, dout = torch.randn(2, 18, 3 * 16), torch.randn(2, 18, 16)
    table, bias = torch.arange(18).reshape(9, 2).T.contiguous().int(), torch.randn(2, 2, 9, 9)
    torch.testing.assert_close(op.forward(qkv, table, bias, 2), group_attention_reference(qkv, table, bias, 2))
    found = op.backward(dout, qkv, table, bias, 2, True)
    for got, right in zip(found, group_attention_backward_reference(dout, qkv, table, bias, 2), strict=True):
        torch.testing.assert_close(got, right)
