"""What the launchers hand to Triton compiles, at sizes and alignments beside the models': on CPU tensors, not run.

bench/ahead_of_time.py compiles the models' sizes by signatures of its own; here the launch itself decides on types,
on integers that are 1 or divisible by 16, and on pointers that are aligned.
"""

import pytest
import torch

pytest.importorskip("triton")
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from aim_kernels import (  # noqa: F401
    column_sum,
    group_attention_triton,
    rotation,
    spatial_attention_triton,
    temporal_attention,
    wide_product_triton,
    wide_swiglu,
)
from aim_kernels.block_shapes import BlockShape
from aim_kernels.registration import OPERATORS
from bench.ahead_of_time import HARMLESS_SPILLS, SHARED_LIMIT, compiled_for, kernels, spill_share, usage

pytestmark = pytest.mark.stack

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(params=[80, 90])
def faults(request, monkeypatch):
    """What is wrong with the launches of a test, which only compile, for an architecture."""
    architecture, found, launch = request.param, [], JITFunction.run

    class Card:
        def get_current_device(self):
            return 1000 + architecture  # kernels compiled for a real card are kept by its number

        def get_current_stream(self, device):
            return 0

        def get_current_target(self):
            return GPUTarget("cuda", architecture, 32)

    def compiled(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        spilled = usage(kernel.asm["cubin"])[1]
        if (
            spill_share(kernel.asm["cubin"]) > HARMLESS_SPILLS
            or kernel.metadata.shared > SHARED_LIMIT[architecture]
            or len(grid) > 1
            or not 0 < grid[0] < 2**31
        ):
            found.append(f"{self.__name__}: {spilled} bytes spilled, {kernel.metadata.shared} shared, grid {grid}")
        return kernel

    monkeypatch.setattr(JITFunction, "run", compiled)
    monkeypatch.setattr(driver, "_active", Card())
    return found


@pytest.fixture
def launched(faults, monkeypatch):
    """What the launches of a test made, by the kernels' names."""
    compile_launch, made = JITFunction.run, {}

    def kept(self, *args, **kwargs):
        made[self.__name__] = compile_launch(self, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "run", kept)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("b", "t", "n", "h", "d", "dtype"),
    [(1, 8, 197, 12, 64, FP32), (1, 32, 9, 1, 64, FP32), (1, 16, 8, 1, 96, FP32), (1, 1, 1, 1, 80, BF16)],
)
def test_temporal_attention(b, t, n, h, d, dtype, faults):
    qkv = torch.empty(b, t, n, 3 * h * d + 1, dtype=dtype)[..., 1:]  # off every alignment
    out, lse = OPERATORS["temporal_attention"].triton(qkv, h)
    OPERATORS["temporal_attention_backward"].triton(out, qkv, out, lse, h)
    assert not faults


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "h", "d", "dtype"), [(197, 12, 64, FP32), (50, 2, 80, FP32), (50, 1, 128, FP32), (50, 16, 80, BF16)]
)
@pytest.mark.parametrize("biased", [False, True])
def test_spatial_attention(biased, n, h, d, dtype, faults):
    frames = torch.empty(2, n, 3, h, d, dtype=dtype)
    bias = torch.empty(1, h, n, n) if biased else None
    out, lse = spatial_attention_triton.forward(frames, bias)
    spatial_attention_triton.backward(out, frames, out, lse, bias)
    assert not faults


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "h", "d", "dtype"), [(197, 12, 64, torch.float16), (256, 1, 20, BF16), (100, 3, 64, BF16), (1, 2, 64, BF16)]
)
def test_spatial_attention_backward_in_one_kernel(n, h, d, dtype, faults, launched, monkeypatch):
    monkeypatch.setattr(spatial_attention_triton, "architecture", lambda x: driver.active.get_current_target().arch)
    frames, lse = torch.empty(2, n, 3, h, d, dtype=dtype), torch.empty(2, h, n)
    spatial_attention_triton.backward(frames[:, :, 0], frames, frames[:, :, 0], lse)
    assert launched.keys() == {"spatial_attention_backward_kernel"}
    assert usage(launched["spatial_attention_backward_kernel"].asm["cubin"])[1] == 0
    assert not faults


@pytest.mark.slow
@pytest.mark.parametrize(("h", "d", "dtype"), [(12, 64, FP32), (2, 88, BF16), (1, 256, FP32)])
def test_rotation(h, d, dtype, faults):
    qkv, table = torch.empty(1, 2, 9, 3 * h * d, dtype=dtype), torch.empty(8, d)
    for interleaved in (False, True):
        OPERATORS["rotation"].triton(qkv, table, h, interleaved, False)
    assert not faults


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "length", "h", "d", "bias", "dtype"),
    [(64, 49, 4, 32, False, BF16), (9, 16, 4, 32, True, FP32), (4, 25, 2, 64, True, FP32), (1, 8, 1, 32, True, BF16)],
)
def test_group_attention(groups, length, h, d, bias, dtype, faults):
    qkv = torch.empty(2, groups * length, 3 * h * d, dtype=dtype)
    assert group_attention_triton.fits(qkv, length, d)
    table, positions = torch.zeros(groups, length, dtype=torch.int32), torch.empty(groups, h, length, length)
    out = group_attention_triton.forward(qkv, table, positions, h)
    group_attention_triton.backward(out, qkv, table, positions, h, bias)
    assert not faults


@pytest.mark.slow
@pytest.mark.parametrize(("width", "split"), [(192, 0), (320, 0), (3264, 3072)])
def test_wide_activation(width, split, faults):
    u, factor = torch.empty(70, width, dtype=BF16), torch.empty(70)
    for activation in ("quick_gelu", "gelu_tanh"):
        OPERATORS["wide_activation"].triton(u, split, activation, factor)
        OPERATORS["wide_activation_backward"].triton(u, u, split, activation, factor)
    assert not faults


@pytest.mark.slow
def test_what_is_compiled_ahead_of_time_is_what_launches(faults, launched, tmp_path, monkeypatch):
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))  # a kernel kept by another checkout names its files
    u, factor = torch.empty(16, 3264, dtype=BF16), torch.empty(16)
    y, slope = OPERATORS["wide_slope"].triton(u, 3072, "quick_gelu", factor)
    OPERATORS["wide_slope_backward"].triton(y, slope, u[:, 3072:], factor)
    for direction in ("forward", "backward"):
        made = launched[f"wide_slope_{direction}_kernel"]
        architecture = made.metadata.target.arch
        listed = {kernel.name: kernel for kernel in kernels(architecture) if kernel.model == "B/16"}
        ahead = compiled_for(listed[f"wide_slope {direction}"], architecture)
        assert ahead.asm["ptx"] == made.asm["ptx"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "split"), [(192, 0), (320, 171), (3264, 3072)])
def test_wide_swiglu(width, split, faults):
    u, factor = torch.empty(70, split + width, dtype=BF16), torch.empty(70)
    y = OPERATORS["wide_swiglu"].triton(u, split, factor)
    OPERATORS["wide_swiglu_backward"].triton(y, u, split, factor)
    assert not faults


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "split", "hidden", "keep"), [(768, 3072, 192, False), (200, 800, 40, True)])
def test_wide_product(depth, split, hidden, keep, faults, monkeypatch):
    monkeypatch.setattr(wide_product_triton, "architecture", lambda x: driver.active.get_current_target().arch)
    y, factor = torch.empty(70, depth, dtype=BF16), torch.empty(70)
    widening, bias = torch.empty(split + hidden, depth, dtype=BF16), torch.empty(split + hidden, dtype=BF16)
    own, shape = torch.empty(70, hidden, dtype=BF16), BlockShape(128, 128, 8, 3)
    wide_product_triton.forward(y, widening, bias, split, "gelu", factor, keep, shape)
    slope = torch.empty(70, split, dtype=torch.uint8)
    wide_product_triton.backward(y, torch.empty(depth, split + hidden, dtype=BF16), slope, own, factor, shape)
    assert not faults


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "width", "dtype"), [(50432, 192, BF16), (70, 77, FP32), (1, 1, BF16)])
def test_column_sum(rows, width, dtype, faults):
    wide, factor = torch.empty(rows, 17 * width, dtype=dtype), torch.empty(rows)
    OPERATORS["column_sum"].triton(wide[:, 16 * width :], None)
    for dropped in (False, True):
        OPERATORS["branch_gradient"].triton(wide[:, :width], factor, BF16, dropped)
    x = wide[:, :width]
    for more in (None, torch.empty(rows // 32 + 1, 4 * width)):
        OPERATORS["column_sums"].triton(x, more, 4)
        OPERATORS["gelu_gradients"].triton(x, x, more, 4)
    assert not faults
