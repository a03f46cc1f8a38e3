"""aim::spatial_attention on CPU, on every tier, against float64."""

import pytest
import torch

from aim_kernels import spatial_attention_triton
from aim_kernels.block_shapes import APART, candidates, trying
from aim_kernels.spatial_attention import (
    backend_missing,
    spatial_attention,
    spatial_attention_backward_reference,
    spatial_attention_reference,
)

# B, T, N, heads, head dimension
SHAPES = [(1, 2, 197, 2, 64), (2, 1, 17, 1, 32), (1, 1, 50, 2, 80), (1, 1, 257, 1, 128), (1, 2, 1, 1, 20)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward_lose_no_more_than_plain_torch(shape, biased, dtype, tier, hold_attention):
    b, t, n, h, d = shape
    torch.manual_seed(0)
    qkv = torch.randn(b, t, n, 3 * h * d).to(dtype).requires_grad_()
    dout = torch.randn(b, t, n, h * d).to(dtype)
    bias = torch.randn(1, h, n, n) * 2 if biased else None
    out, lse = torch.ops.aim.spatial_attention(qkv, h, "auto", bias)
    out.backward(dout)
    hold_attention(
        (out, lse, qkv.grad),
        qkv,
        dout,
        split=lambda x: x.unflatten(-1, (3, h, d)).permute(3, 0, 1, 4, 2, 5),
        join=lambda x: x.transpose(2, 3).flatten(-2),
        bias=bias,
    )


@pytest.mark.parametrize("bias", [None, torch.linspace(-3, 3, 50, dtype=torch.float64).view(1, 2, 5, 5)])
def test_backward_reference_is_the_gradient(bias):
    qkv = torch.randn(2, 2, 5, 3 * 2 * 8, dtype=torch.float64, requires_grad=True)
    dout = torch.randn(2, 2, 5, 16, dtype=torch.float64)
    out, lse = spatial_attention_reference(qkv, 2, bias)
    out.backward(dout)
    got = spatial_attention_backward_reference(dout, qkv.detach(), out.detach(), lse.detach(), 2, bias)
    torch.testing.assert_close(got, qkv.grad)


def test_a_bias_that_trains_gets_its_gradient():
    qkv = torch.randn(1, 2, 4, 3 * 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b: spatial_attention(x, 2, bias=b), (qkv, bias))
    torch.testing.assert_close(spatial_attention(qkv, 2, bias=bias), spatial_attention(qkv, 2, bias=bias.detach()))


def test_autocast_leaves_the_bias_as_it_is():
    qkv, bias = torch.randn(1, 2, 9, 3 * 32).bfloat16(), torch.randn(1, 2, 9, 9) * 10
    plain = spatial_attention(qkv, 2, bias=bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(spatial_attention(qkv.float(), 2, bias=bias), plain)


@pytest.mark.parametrize("bias", [None, torch.linspace(-3, 3, 98).view(1, 2, 7, 7)], ids=["", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype, bias):
    qkv = torch.randn(2, 2, 7, 3 * 32, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.aim.spatial_attention.default, (qkv, 2, "auto", bias))
    out, lse = torch.ops.aim.spatial_attention(qkv.detach(), 2, "auto", bias)
    args = (out, qkv.detach(), out, lse, 2, "auto", bias)
    torch.library.opcheck(torch.ops.aim.spatial_attention_backward.default, args)


def test_reads_strided_input(tier):
    qkv = torch.randn(2, 4, 5, 3 * 32 + 7)[..., 3 : 3 + 3 * 32]
    torch.testing.assert_close(spatial_attention(qkv, 2), spatial_attention(qkv.contiguous(), 2))


def test_scores_beyond_the_range_of_exp_stay_finite(tier):
    qkv = torch.randn(1, 1, 33, 3 * 16) * 60
    got, _ = torch.ops.aim.spatial_attention(qkv, 1, "auto")
    torch.testing.assert_close(got, spatial_attention_reference(qkv, 1)[0], atol=2e-4, rtol=1e-4)


def test_compiles_whole_under_autocast_and_equals_eager():
    qkv = torch.randn(1, 2, 5, 3 * 32)

    def step(x):
        with torch.autocast("cpu", torch.bfloat16):
            return spatial_attention(x, 2).float().square().sum()

    eager, compiled = qkv.clone().requires_grad_(), qkv.clone().requires_grad_()
    step(eager).backward()
    torch.compile(step, fullgraph=True, backend="aot_eager")(compiled).backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


def test_checkpointing_gives_the_same_gradient():
    from torch.utils.checkpoint import checkpoint

    plain, again = (torch.randn(1, 2, 5, 96, generator=torch.manual_seed(0)).requires_grad_() for _ in range(2))
    spatial_attention(plain, 2).sum().backward()
    checkpoint(spatial_attention, again, 2, use_reentrant=False).sum().backward()
    assert torch.equal(plain.grad, again.grad)


def test_empty_and_nan(tier):
    assert spatial_attention(torch.empty(0, 2, 5, 96), 2).shape == (0, 2, 5, 32)
    qkv = torch.randn(1, 2, 40, 3 * 32)
    qkv[0, 0, 3, 0] = float("nan")
    out = spatial_attention(qkv, 2)
    assert out[0, 0, 3, :16].isnan().all()
    assert out.isnan().sum() == 16


def test_a_backend_that_cannot_serve_says_why():
    with pytest.raises(ValueError, match="needs a CUDA tensor"):
        spatial_attention(torch.randn(1, 1, 4, 96), 2, backend="triton")
    with pytest.raises(ValueError, match=r"expected a bias \[1, 2, 4, 4\], got \[2, 4, 4\]"):
        spatial_attention(torch.randn(1, 1, 4, 96), 2, bias=torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="is none of auto, cpu"):
        spatial_attention(torch.randn(1, 1, 4, 96), 2, backend="flash")
    for backend in ("sdpa", "cudnn", "xformers", "flash3"):
        assert backend_missing(backend, torch.device("cpu")).startswith(f"backend {backend} needs a CUDA tensor")
    assert backend_missing("auto", torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("tokens", "architecture", "itemsize", "head_dim", "rows"),
    [
        (197, 80, 2, 64, 16),
        (197, 90, 2, 64, 32),
        (197, 100, 2, 20, 32),
        (50, 86, 2, 64, 32),
        (197, 89, 2, 64, None),  # too little shared memory
        (197, 120, 2, 64, None),
        (257, 90, 2, 64, None),
        (197, 90, 2, 80, None),
        (197, 90, 4, 64, None),
    ],
)
def test_a_backward_is_one_kernel_where_a_program_has_room_for_all_keys(tokens, architecture, itemsize, head_dim, rows):
    with trying({}) as trial:
        shape = spatial_attention_triton.backward_shape(head_dim, architecture, itemsize, tokens)
    assert shape == APART if rows is None else (shape.rows, shape.columns >= tokens) == (rows, True)
    for launch in trial.asked:
        assert (APART in candidates(launch), len(candidates(launch)) > 1) == (True, rows is not None)
