"""The Triton operators on the device, bf16 and fp16, at the sizes of B/16 and L/14, by the error rule."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from aim_kernels import (
    error_rule,
    residual_norm,  # noqa: F401
    wide_product,
    wide_product_triton,
    wide_slope,  # noqa: F401  (registers the operator)
)
from aim_kernels.adaptation import activate, adapter_reference
from aim_kernels.adapter import adapter
from aim_kernels.bias_gradients import column_sums_reference, gelu_gradients_reference
from aim_kernels.block_shapes import LIBRARY, Launch, candidates, trying
from aim_kernels.choices import Activation
from aim_kernels.column_sum import branch_gradient, column_sum
from aim_kernels.formed_adapter import fold_projection
from aim_kernels.group_attention import backend_missing as group_backend_missing
from aim_kernels.group_attention import group_attention, group_attention_reference
from aim_kernels.layer_norm import layer_norm, layer_norm_backward_reference
from aim_kernels.packed import packed_reference, unpacked_reference
from aim_kernels.patch_embed import patch_embed, patch_embed_reference
from aim_kernels.registration import architecture
from aim_kernels.residual import residual_add
from aim_kernels.spatial_attention import backend_missing, spatial_attention, spatial_attention_reference
from aim_kernels.temporal_attention import temporal_attention, temporal_attention_reference
from aim_kernels.weights import AdapterWeights, AttentionWeights
from aim_kernels.wide_activation import (
    wide_activation,
    wide_activation_backward_reference,
    wide_activation_reference,
)
from aim_kernels.wide_swiglu import wide_swiglu


def check(fused, plain, x):
    """Value and input gradient, by the error rule."""
    for name, sides in error_rule.value_and_gradient(fused, plain, x).items():
        error_rule.hold(*sides, name=name)


def attend(x, heads, over_time):
    axes = (3, 0, 2, 4, 1, 5) if over_time else (3, 0, 1, 4, 2, 5)
    q, k, v = x.unflatten(-1, (3, heads, x.shape[-1] // 3 // heads)).permute(axes)
    out = ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return (out.permute(0, 3, 1, 2, 4) if over_time else out.transpose(2, 3)).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("b", "t", "n", "h", "d"),
    [
        (2, 8, 197, 12, 64),
        (1, 32, 257, 16, 64),
        (1, 1, 65, 2, 80),
        (1, 64, 9, 2, 128),
        (2, 5, 33, 3, 32),
        (1, 10, 8, 1, 96),
    ],
)
def test_temporal_attention(b, t, n, h, d, dtype):
    qkv = torch.randn(b, t, n, 3 * h * d, device="cuda", dtype=dtype)
    check(lambda x: temporal_attention(x, h), lambda x: attend(x, h, over_time=True), qkv)


@pytest.mark.parametrize("backend", ["auto", "triton", "sdpa", "xformers", "flash3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "h", "d"), [(197, 12, 64), (257, 16, 64), (50, 2, 80), (1025, 2, 128)])
def test_spatial_attention(n, h, d, dtype, backend):
    missing = backend_missing(backend, torch.device("cuda"))
    if missing:
        pytest.skip(missing)
    qkv = torch.randn(1, 4, n, 3 * h * d, device="cuda", dtype=dtype)
    check(lambda x: spatial_attention(x, h, backend), lambda x: attend(x, h, over_time=False), qkv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "h", "d"), [(197, 12, 64), (129, 3, 48), (100, 4, 64), (50, 12, 64), (9, 2, 20)])
def test_spatial_attention_backward_in_one_kernel_or_two(n, h, d, dtype):
    qkv = torch.randn(1, 4, n, 3 * h * d, device="cuda", dtype=dtype)
    tokens = 1 << (n - 1).bit_length()
    launch = Launch("spatial_attention_backward", tokens, architecture(qkv), 2, n, "spatial_attention_backward")
    for shape in candidates(launch):
        with trying({launch: shape}) as trial:
            check(lambda x: spatial_attention(x, h, "triton"), lambda x: attend(x, h, over_time=False), qkv)
        assert trial.asked[launch] == shape


@pytest.mark.parametrize("backend", ["triton", "sdpa", "xformers"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("frames", "groups", "length", "own", "h"),
    [(16, 64, 49, True, 4), (16, 64, 49, False, 4), (2, 3136, 16, False, 4), (8, 1, 49, False, 32)],
)
def test_group_attention(frames, groups, length, own, h, dtype, backend):
    """Swin-B's windows of the first stage, shifted and not, its time over 32 frames, and its last stage."""
    missing = group_backend_missing(backend, torch.device("cuda"))
    if missing:
        pytest.skip(missing)
    qkv = torch.randn(frames, groups * length, 3 * h * 32, device="cuda", dtype=dtype)
    table = torch.randperm(groups * length, device="cuda").view(groups, length).int()
    bias = torch.randn(groups if own else 1, h, length, length, device="cuda")

    def plain(x):
        q, k, v = x[:, table.flatten()].view(frames, groups, length, 3, h, 32).permute(3, 0, 1, 4, 2, 5)
        out = ((q @ k.transpose(-1, -2)) * 32**-0.5 + bias.to(x.dtype)).softmax(-1) @ v
        return out.transpose(2, 3).reshape(frames, groups * length, h * 32)[:, table.flatten().argsort()]

    check(lambda x: group_attention(x, table, bias, h, backend), plain, qkv)


def test_group_attention_gives_the_bias_its_gradient():
    qkv = torch.randn(2, 3136 * 16, 3 * 64, device="cuda", dtype=torch.bfloat16)
    table = torch.arange(3136 * 16, device="cuda").view(16, 3136).T.contiguous().int()
    bias = torch.randn(1, 2, 16, 16, device="cuda")

    def plain(b):
        return group_attention_reference(qkv.double() if b.dtype == torch.float64 else qkv, table, b, 2)

    check(lambda b: group_attention(qkv, table, b, 2), plain, bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [768, 1024, 1280, 5120])
def test_layer_norm(width, dtype):
    weight, bias = torch.rand(width, device="cuda") + 0.5, torch.randn(width, device="cuda")
    x = torch.randn(3, 197, width, device="cuda", dtype=dtype) * 3 + 1

    def plain(x):
        return F.layer_norm(x, (width,), weight.to(x.dtype), bias.to(x.dtype))

    check(lambda x: layer_norm(x, weight, bias), plain, x)


@pytest.mark.parametrize("factor", [False, True])
@pytest.mark.parametrize("width", [768, 1024])
def test_gradient_of_a_folded_norm(width, factor):
    dy, normal = (torch.randn(1576, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    g, weight = torch.randn(1576, width, device="cuda"), torch.ones(width, device="cuda")
    rstd, drop = torch.rand(1576, device="cuda") + 0.5, torch.rand(1576, device="cuda") + 0.5 if factor else None
    found = torch.ops.aim.residual_norm_backward(dy, normal, weight, None, rstd, g, drop, torch.bfloat16, True, True)
    found = found[:3]  # nothing in eight bits is asked for

    def plain(dtype):
        operands = (x.to(dtype) for x in (dy, normal, weight))
        dx = layer_norm_backward_reference(*operands, None, rstd.to(dtype), g.to(dtype))
        branch = dx if drop is None else dx * drop[:, None].to(dtype)
        low = branch if dtype == torch.float64 else branch.bfloat16().to(dtype)
        return dx, low, low.sum(0)

    for got, rounded, exact in zip(found, plain(torch.float32), plain(torch.float64), strict=True):
        error_rule.hold(got, rounded, exact)


@pytest.mark.parametrize("width", [768, 1024])
def test_a_packed_stream_and_its_gradient(width):
    x, g = (torch.randn(1576, width, device="cuda") * 3 for _ in range(2))
    branch, dy, normal = (torch.randn(1576, width, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    ones, zeros = torch.ones(width, device="cuda"), torch.zeros(width, device="cuda")
    mean, rstd = torch.randn(1576, device="cuda"), torch.rand(1576, device="cuda") + 0.5
    (high, low), (g_high, g_low) = packed_reference(x), packed_reference(g)
    how = (branch, None, None, ones, zeros, 1e-5, torch.bfloat16, None, True, None, low, mean, rstd, True)
    left, y, *_ = torch.ops.aim.residual_norm(high, *how)
    out = unpacked_reference(high, low, mean, rstd) + branch.float()
    exact = F.layer_norm(out.double(), (width,), eps=1e-5)
    torch.testing.assert_close(unpacked_reference(y, left).double(), exact, rtol=2**-14, atol=1e-5)
    how = (None, torch.bfloat16, True, False, False, None, g_low, True)
    left, branch, *_ = torch.ops.aim.residual_norm_backward(dy, normal, ones, None, rstd, g_high, *how)
    operands = (value.double() for value in (dy, normal, ones))
    exact = layer_norm_backward_reference(*operands, None, rstd.double(), unpacked_reference(g_high, g_low).double())
    torch.testing.assert_close(unpacked_reference(branch, left).double(), exact, rtol=2**-14, atol=1e-5)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_wide_activation(activation):
    u = torch.randn(1576, 3264, device="cuda", dtype=torch.bfloat16) * 2
    factor = torch.bernoulli(torch.full((1576,), 0.8, device="cuda")) / 0.8

    def plain(x):
        frozen = activate(x[:, :3072], activation)
        return torch.cat([frozen, F.gelu(x[:, 3072:]) * factor[:, None].to(x.dtype)], 1)

    check(lambda x: wide_activation(x, 3072, activation, factor), plain, u)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("width", "hidden", "surrounded"),
    [(768, 192, True), (1024, 256, False), (768, 64, True), (520, 72, True), (128, 16, False), (1280, 512, True)],
)
def test_adapter(width, hidden, surrounded, dtype):
    """Value, input gradient and every weight's gradient, against float64."""
    shapes = ((hidden, width), (hidden,), (width, hidden), (width,))
    masters = [torch.randn(*shape, device="cuda") * shape[-1] ** -0.5 for shape in shapes]
    z, residual, flow = (torch.randn(2, 197, width, device="cuda").to(dtype) for _ in range(3))
    factor = torch.tensor([0.0, 1.25], device="cuda").view(2, 1, 1)

    def run(function, kind):
        leaves = [x.to(dtype).to(kind, copy=True).requires_grad_() for x in (z, *masters)]
        around = (residual.to(kind), factor.to(kind)) if surrounded else (None, None)
        out = function(leaves[0], AdapterWeights(*leaves[1:]), True, 0.5, *around)
        return (out, *torch.autograd.grad(out, leaves, flow.to(kind)))

    def plain(z, weights, skip, scale, residual, factor):
        branch = scale * (z + adapter_reference(z, weights))
        return branch if residual is None else residual + factor * branch

    for sides in zip(run(adapter, dtype), run(plain, dtype), run(plain, torch.float64), strict=True):
        error_rule.hold(*sides)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_wide_slope(activation):
    u, dy = (torch.randn(1576, 3264, device="cuda", dtype=torch.bfloat16) * 2 for _ in range(2))
    factor = torch.bernoulli(torch.full((1576,), 0.8, device="cuda")) / 0.8
    odd = u.clone()
    odd[7, 9] = torch.nan
    slope = torch.ops.aim.wide_slope(odd, 3072, activation, factor)[1]
    assert torch.ops.aim.wide_slope_backward(dy, slope, u[:, 3072:], factor).isnan().nonzero().tolist() == [[7, 9]]
    y, slope = torch.ops.aim.wide_slope(u, 3072, activation, factor)
    torch.testing.assert_close(y, wide_activation_reference(u, 3072, activation, factor), atol=0.01, rtol=0.01)
    du = torch.ops.aim.wide_slope_backward(dy, slope, u[:, 3072:], factor)
    truth = wide_activation_backward_reference(dy.double(), u.double(), 3072, activation, factor)
    assert ((du - truth).abs() <= dy.double().abs() * 0.0028 + truth.abs() * 0.01 + 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize(("rows", "width", "hidden"), [(1576, 768, 192), (514, 1024, 256), (300, 200, 40)])
def test_wide_product(rows, width, hidden, activation, dtype):
    """Every tile that a tuning may take, and the library's product, forward and back."""
    shapes = (rows, width), (4 * width + hidden, width), (4 * width + hidden,), (width, 4 * width + hidden)
    y, widening, bias, narrowing = (torch.randn(*shape, device="cuda") * shape[-1] ** -0.5 for shape in shapes)
    y, widening, bias, narrowing = (x.to(dtype) for x in (y * width**0.5, widening, bias, narrowing))
    factor = torch.bernoulli(torch.full((rows,), 0.8, device="cuda")) / 0.8
    given = (y, widening, bias, 4 * width, activation, factor, True)
    wide = [x.double() if isinstance(x, torch.Tensor) and x.dtype == dtype else x for x in given]
    plain, coded = wide_product.wide_product_reference(*given)
    truth = wide_product.wide_product_reference(*wide)[0]
    own = F.linear(y, widening[4 * width :], bias[4 * width :])
    back = (y, narrowing, coded, own, factor)
    wide = [x.double() if x.dtype == dtype else x for x in back]
    backs = [wide_product.wide_product_backward_reference(*x) for x in (back, wide)]
    launch = Launch("wide_product_forward", 4 * width + hidden, architecture(y), 2, 0, "wide_product")
    for shape in candidates(launch):
        if shape == LIBRARY:
            out, slope = torch.ops.aim.wide_product(*given)
            du = torch.ops.aim.wide_product_backward(*back)
        else:
            out, slope = wide_product_triton.forward(*given, shape)
            du = wide_product_triton.backward(*back, shape)
        assert (slope.int() - coded.int()).abs().max() <= 1, shape
        error_rule.hold(out, plain, truth, name=str(shape))
        error_rule.hold(du, *backs, name=str(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_wide_swiglu(dtype):
    u = (torch.randn(1576, 2 * 2048 + 192, device="cuda") * 2).to(dtype)
    factor = torch.bernoulli(torch.full((1576,), 0.8, device="cuda")) / 0.8

    def plain(x):
        frozen = activate(x[:, :4096], "swiglu")
        return torch.cat([frozen, F.gelu(x[:, 4096:]) * factor[:, None].to(x.dtype)], 1)

    check(lambda x: wide_swiglu(x, 2048, factor), plain, u)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("p", "width", "frames"), [(16, 768, 8), (14, 1024, 32)])
def test_patch_embed(p, width, frames, dtype):
    clips = torch.randint(0, 256, (2, frames, 224, 224, 3), dtype=torch.uint8, device="cuda")
    sizes = ((width, 3, p, p), (width,), (1 + (224 // p) ** 2, width), (width,), (width,))
    weight, first, position, ln_weight, ln_bias = (torch.randn(*size, device="cuda") * 0.1 for size in sizes)
    mean, std = (122.769, 116.74, 104.04), (68.493, 66.63, 70.321)

    def embed(function, temporal):
        before, after = ((x.to(temporal.dtype) for x in xs) for xs in ((weight, first, position), (ln_weight, ln_bias)))
        return function(clips, *before, temporal, *after, mean, std)

    temporal = torch.randn(frames, width, device="cuda", dtype=dtype)
    check(lambda x: embed(patch_embed, x), lambda x: embed(patch_embed_reference, x), temporal)


@pytest.mark.parametrize("operator", ["temporal", "spatial"])
def test_offsets_beyond_32_bits(operator):
    """960 clips of B/16's qkv: 3.5e9 elements, so that the last clips lie beyond any 32-bit offset."""
    attention, reference = {
        "temporal": (temporal_attention, temporal_attention_reference),
        "spatial": (spatial_attention, spatial_attention_reference),
    }[operator]
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free memory")
    qkv = torch.empty(960, 8, 197, 3 * 768, device="cuda", dtype=torch.bfloat16)
    qkv[:] = torch.randn(8, 197, 3 * 768, device="cuda", dtype=torch.bfloat16)
    qkv[-1].normal_()
    qkv.requires_grad_()
    flow = torch.randn(8, 197, 768, device="cuda", dtype=torch.bfloat16).expand(960, -1, -1, -1)
    out = attention(qkv, 12)
    (found,) = torch.autograd.grad(out, qkv, flow)
    leaf = qkv.detach()[-1:].double().requires_grad_()
    exact = reference(leaf, 12)[0]
    (wanted,) = torch.autograd.grad(exact, leaf, flow[:1].double())
    for got, truth in ((out[-1:], exact), (found[-1:], wanted)):
        assert (got.double() - truth).norm() <= 0.02 * truth.norm()


def test_rows_beyond_32_bits():
    """The kernels that go by rows: layer norm, activation, adapter and residual add over 2.4e9 elements."""
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free memory")
    x = torch.empty(3_100_000, 768, device="cuda", dtype=torch.bfloat16)
    x[:] = torch.randn(768, device="cuda", dtype=torch.bfloat16)
    x[-1].normal_()
    weights = AdapterWeights(*(torch.randn(*s, device="cuda") * 0.03 for s in ((64, 768), (64,), (768, 64), (768,))))
    ones, zeros = torch.ones(768, device="cuda"), torch.zeros(768, device="cuda")
    low = AdapterWeights(*(v.bfloat16() for v in weights))
    wide = AdapterWeights(*(v.double() for v in low))
    cases = (
        (lambda: layer_norm(x, ones, zeros), lambda y: F.layer_norm(y, (768,))),
        (lambda: wide_activation(x, 768), lambda y: y * torch.sigmoid(1.702 * y)),
        (lambda: adapter(x, low, skip=True), lambda y: y + adapter_reference(y, wide)),
        (lambda: residual_add(x, x), lambda y: y + y),
    )
    for fused, plain in cases:
        truth = plain(x[-1:].double())
        assert (fused()[-1:].double() - truth).norm() <= 0.02 * truth.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_column_sums(dtype):
    g, drop = torch.randn(50432, 768, device="cuda"), 1.25 * (torch.rand(50432, device="cuda") < 0.8)
    wide = g.to(dtype)
    error_rule.hold(column_sum(wide[:, 576:], torch.float32), wide[:, 576:].sum(0), wide[:, 576:].double().sum(0))
    for dropped in (False, True):
        branch, bias = branch_gradient(g, dtype, True, drop, dropped)
        truth, plain = g.double() * drop[:, None], (g * drop[:, None]).to(dtype)
        error_rule.hold(bias, plain.sum(0, dtype=torch.float32), truth.sum(0))
        assert torch.equal(branch, plain if dropped else wide)
        assert torch.equal(bias, branch_gradient(g, dtype, True, drop, dropped)[1])


@pytest.mark.parametrize("parts", [1, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bias_gradients(dtype, parts):
    dy, u = (torch.randn(50432, 192, device="cuda").to(dtype) for _ in range(2))
    rows = torch.randn(1576, 768, device="cuda")
    wide = [x.double() for x in (dy, u, rows)]
    for factor in (None, torch.rand(50432, device="cuda") + 0.5):
        found = torch.ops.aim.gelu_gradients(dy, u, rows, parts, factor)
        plain = gelu_gradients_reference(dy, u, rows, parts, factor)
        truth = gelu_gradients_reference(*wide, parts, None if factor is None else factor.double())
        for got, rounded, exact in zip(found, plain, truth, strict=True):
            error_rule.hold(got, rounded, exact)
        for got, again in zip(found, torch.ops.aim.gelu_gradients(dy, u, rows, parts, factor), strict=True):
            assert torch.equal(got, again)
    plain, truth = column_sums_reference(dy, rows, parts), column_sums_reference(wide[0], wide[2], parts)
    for got, rounded, exact in zip(torch.ops.aim.column_sums(dy, rows, parts), plain, truth, strict=True):
        error_rule.hold(got, rounded, exact)


def test_a_folded_bias_is_the_same_under_autocast():
    """Forward forms it under autocast, backward outside."""
    adapter = AdapterWeights(*(torch.randn(*s, device="cuda") for s in ((192, 768), (192,), (768, 192), (768,))))
    sizes = ((2304, 768), (2304,), (768, 768), (768,))
    attention = AttentionWeights(*(torch.randn(*s, device="cuda").bfloat16() for s in sizes))
    outside = fold_projection(adapter, attention[2:], adapter.w1)[1]
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(fold_projection(adapter, attention[2:], adapter.w1)[1], outside)


def test_no_launch_leaves_the_device_of_its_input():
    u = torch.randn(64, 128, device="cuda", dtype=torch.bfloat16)
    torch.testing.assert_close(
        wide_activation(u, 64), wide_activation_reference(u, 64, "quick_gelu", None), atol=0.02, rtol=0.02
    )
