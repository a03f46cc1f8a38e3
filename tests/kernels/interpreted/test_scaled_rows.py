"""The Triton kernels that write rows in eight bits: rows whole, widths off powers of two, what they write beside.

Their values are written in float32 here: the interpreter's e4m3 is not a card's, which tests/gpu holds.
"""

import pytest
import torch

from aim_kernels import error_rule, scaled_norm, scaled_rows, scaled_wide_product, wide_product_triton
from aim_kernels.block_shapes import LIBRARY, BlockShape
from aim_kernels.registration import OPERATORS
from aim_kernels.scaled_product import scaled_weight

WIDE = torch.float32
pytestmark = pytest.mark.usefixtures("_loops_to_a_tensor")


@pytest.fixture(params=[89, 90])
def target(request, monkeypatch):
    monkeypatch.setattr(wide_product_triton, "architecture", lambda x: request.param)


def hold(found, plain, truth):
    for got, rounded, exact in zip(found, plain, truth, strict=True):
        error_rule.hold(got, rounded, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [64, 77])
def test_rows(width, dtype):
    torch.manual_seed(0)
    x = torch.randn(7, width).to(dtype)
    x[3] = 0
    found = OPERATORS["scaled_rows"].triton(x, WIDE)
    plain = scaled_rows.scaled_rows_reference(x, WIDE)
    hold(found, plain, scaled_rows.scaled_rows_reference(x.double(), torch.float64))


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(("plain", "kept"), [(False, False), (True, True)])
def test_norm(rms, plain, kept):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 7, 77), torch.rand(77) + 0.5, None if rms else torch.randn(77)
    asked = (WIDE, torch.float16, plain, kept)
    found = OPERATORS["scaled_norm"].triton(x, weight, bias, 1e-5, *asked)
    rounded = scaled_norm.scaled_norm_reference(x, weight, bias, 1e-5, *asked)
    wide = None if bias is None else bias.double()
    truth = scaled_norm.scaled_norm_reference(
        x.double(), weight.double(), wide, 1e-5, torch.float64, torch.float64, plain, kept
    )
    hold(found, rounded, truth)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("tile", [None, BlockShape(32, 64, 4, 3)])
def test_products_beside_an_activation(activation, tile, target, monkeypatch):
    """With the pass after a library's product, and with it within one of ours: rows and columns that fill no tile."""
    monkeypatch.setattr(scaled_wide_product, "product_shape", lambda *_: tile or LIBRARY)
    torch.manual_seed(0)
    weight, bias = torch.randn(80, 144), torch.randn(80)
    scaled = scaled_weight(weight, bias)
    for direction, other in (("", scaled.rows), ("_backward", scaled_weight(weight.t()).columns)):
        values, scale = torch.randn(70, 144), torch.rand(70, 1)
        operands = [values, scale, other.values.float(), other.scale, other.bound]
        if direction:
            operands += [torch.randint(0, 255, (70, 80), dtype=torch.uint8), WIDE]
        else:
            operands += [bias, activation, True]
        operator = OPERATORS[f"scaled_wide_product{direction}"]
        found, plain = operator.triton(*operands), operator.reference(*operands)
        truth = operator.reference(*(doubled(x) for x in operands))
        hold(found[:2], plain[:2], truth[:2])
        if not direction:
            assert (found[2].int() - plain[2].int()).abs().max() <= 1
            assert len(operator.triton(*operands[:-1], False)[2]) == 0


def doubled(x):
    if isinstance(x, torch.dtype):
        return torch.float64
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
