"""aim::temporal_attention on CPU, on every tier, against float64."""

import pytest
import torch

from aim_kernels.temporal_attention import (
    temporal_attention,
    temporal_attention_backward_reference,
    temporal_attention_reference,
)

# B, T, N, heads, head dimension: T from 1 to 64, head dimensions off the vector width too
SHAPES = [(1, 8, 5, 2, 64), (2, 1, 3, 1, 32), (1, 33, 2, 1, 80), (1, 64, 1, 2, 96), (2, 5, 2, 1, 20)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward_lose_no_more_than_plain_torch(shape, dtype, tier, hold_attention):
    b, t, n, h, d = shape
    torch.manual_seed(0)
    qkv = torch.randn(b, t, n, 3 * h * d).to(dtype).requires_grad_()
    dout = torch.randn(b, t, n, h * d).to(dtype)
    out, lse = torch.ops.aim.temporal_attention(qkv, h)
    out.backward(dout)
    hold_attention(
        (out, lse, qkv.grad),
        qkv,
        dout,
        split=lambda x: x.unflatten(-1, (3, h, d)).permute(3, 0, 2, 4, 1, 5),
        join=lambda x: x.permute(0, 3, 1, 2, 4).flatten(-2),
    )


def test_backward_reference_is_the_gradient():
    qkv = torch.randn(2, 4, 3, 3 * 2 * 8, dtype=torch.float64, requires_grad=True)
    dout = torch.randn(2, 4, 3, 16, dtype=torch.float64)
    out, lse = temporal_attention_reference(qkv, 2)
    out.backward(dout)
    got = temporal_attention_backward_reference(dout, qkv.detach(), out.detach(), lse.detach(), 2)
    torch.testing.assert_close(got, qkv.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    qkv = torch.randn(2, 5, 3, 3 * 32, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.aim.temporal_attention.default, (qkv, 2))
    out, lse = torch.ops.aim.temporal_attention(qkv.detach(), 2)
    torch.library.opcheck(torch.ops.aim.temporal_attention_backward.default, (out, qkv.detach(), out, lse, 2))


def test_reads_strided_input_in_place(tier):
    wide = torch.randn(2, 4, 5, 3 * 32 + 7)
    qkv = wide[..., 3 : 3 + 3 * 32]
    torch.testing.assert_close(temporal_attention(qkv, 2), temporal_attention(qkv.contiguous(), 2))
    transposed = torch.randn(4, 2, 5, 3 * 32).transpose(0, 1)
    torch.testing.assert_close(temporal_attention(transposed, 2), temporal_attention(transposed.contiguous(), 2))


def test_compiles_whole_under_autocast_and_equals_eager():
    qkv = torch.randn(1, 4, 3, 3 * 32)

    def step(x):
        with torch.autocast("cpu", torch.bfloat16):
            return temporal_attention(x, 2).float().square().sum()

    eager, compiled = qkv.clone().requires_grad_(), qkv.clone().requires_grad_()
    step(eager).backward()
    torch.compile(step, fullgraph=True, backend="aot_eager")(compiled).backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


def test_autocast_decides_the_dtype():
    qkv = torch.randn(1, 4, 3, 3 * 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert temporal_attention(qkv, 2).dtype == torch.bfloat16
    assert temporal_attention(qkv, 2).dtype == torch.float32


def test_empty_batch_gives_empty(tier):
    qkv = torch.empty(0, 4, 3, 96, requires_grad=True)
    out = temporal_attention(qkv, 2)
    out.sum().backward()
    assert out.shape == (0, 4, 3, 32)
    assert qkv.grad.shape == qkv.shape


def test_nan_stays_in_its_sequence_and_head(tier):
    qkv = torch.randn(1, 4, 3, 3 * 32)
    qkv[0, 2, 1, 0] = float("nan")  # the query of frame 2, position 1, head 0
    out = temporal_attention(qkv, 2)
    assert out[0, 2, 1, :16].isnan().all()
    assert out.isnan().sum() == 16


@pytest.mark.parametrize("shape", [(4, 3, 96), (2, 4, 3, 97)])
def test_wrong_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"packed qkv \[B, T, N, 3·2·d\]"):
        temporal_attention(torch.randn(*shape), 2)
