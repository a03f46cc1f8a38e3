"""Products in eight bits on the device: rows as they are rounded there, and torch's product of them, beside a CPU's."""

import copy

import pytest
import torch

from aim_kernels import AIMBlock, hold_trunk, scaled_norm, scaled_wide_product  # noqa: F401  (registers the operators)
from aim_kernels.block_shapes import Launch, candidates, trying
from aim_kernels.formed_together import formed_together
from aim_kernels.registration import OPERATORS, architecture
from aim_kernels.scaled_product import input_gradient, product, scaled_products_missing, scaled_weight
from aim_kernels.scaled_rows import quantised

EIGHT_BITS = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def has_products():
    if missing := scaled_products_missing(torch.device("cuda")):
        pytest.skip(missing)


def relative(got, wanted):
    got, wanted = got.double().cpu(), wanted.double().cpu()
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(
    ("name", "operands"),
    [
        ("scaled_rows", lambda x, slope: (x, EIGHT_BITS)),
        ("scaled_norm", lambda x, slope: (x, x[0].abs(), x[1], 1e-5, EIGHT_BITS, torch.bfloat16, True, True)),
    ],
)
def test_rows_are_rounded_as_by_torch(name, operands):
    x = torch.randn(1576, 3072, device="cuda")
    given = operands(x, torch.randint(0, 255, x.shape, dtype=torch.uint8, device="cuda"))
    operator = OPERATORS[name]
    for got, wanted in zip(operator.triton(*given), operator.reference(*given), strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        assert relative(got, wanted) < 2e-3  # a few of the values lie at a tie, of the codes at a step


@pytest.mark.parametrize("width", [768, 1024])
def test_a_product_beside_an_activation_is_that_of_torch(width):
    """Every tile that a tuning may take, and the library's product, forward and back."""
    weight, bias = torch.randn(4 * width, width, device="cuda") * width**-0.5, torch.randn(4 * width, device="cuda")
    x, dout = torch.randn(1576, width, device="cuda"), torch.randn(1576, width, device="cuda")
    forward = (*quantised(x), *scaled_weight(weight, bias).rows, bias.bfloat16(), "quick_gelu", True)
    slope = torch.randint(0, 255, (1576, 4 * width), dtype=torch.uint8, device="cuda")
    backward = (*quantised(dout), *scaled_weight(weight.t().contiguous()).columns, slope, torch.bfloat16)
    for direction, operands in (("", forward), ("_backward", backward)):
        operator, name = OPERATORS[f"scaled_wide_product{direction}"], f"{direction or '_forward'}"
        wanted = operator.reference(*operands)
        launch = Launch(f"scaled_wide_product{name}", 4 * width, architecture(x), 1, 0, "wide_product")
        for shape in candidates(launch):
            with trying({launch: shape}):
                found = operator.triton(*operands)
            assert relative(found[1], wanted[1]) < 1e-5
            assert relative(found[0].float() * found[1], wanted[0].float() * wanted[1]) < 0.02, shape
            assert direction or (found[2].int() - wanted[2].int()).abs().max() <= 1, shape


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("width", [768, 1024])
def test_a_gradient_is_rounded_where_it_is_written(width, dropped):
    dy, x = (torch.randn(1579, width, device="cuda").bfloat16() for _ in range(2))
    g, weight = torch.randn(1579, width, device="cuda"), torch.rand(width, device="cuda") + 0.5
    mean, rstd, factor = (torch.rand(1579, device="cuda") + 0.5 for _ in range(3))
    operands = (dy, x, weight, mean, rstd, g, factor, torch.bfloat16, dropped, True, True)
    apart, found = (OPERATORS["residual_norm_backward"].triton(*operands, dtype) for dtype in (None, EIGHT_BITS))
    rows = OPERATORS["scaled_rows"].triton(apart[1], EIGHT_BITS)
    for got, wanted in zip(found, (*apart[:3], *rows), strict=True):
        assert torch.equal(got.float(), wanted.float())


def test_a_product_is_that_of_a_cpu():
    x, weight, bias = torch.randn(1576, 768), torch.randn(3072, 768), torch.randn(3072)
    flow = torch.randn(1576, 3072)
    found = {}
    for device in ("cpu", "cuda"):
        w, scaled = weight.to(device), scaled_weight(weight.to(device))
        out = product(x.to(device), w, bias.to(device), scaled, torch.bfloat16)
        found[device] = out, input_gradient(flow.to(device), w, scaled, torch.bfloat16)
    for got, wanted in zip(found["cuda"], found["cpu"], strict=True):
        assert relative(got, wanted) < 6e-3  # bf16's rounding, and that of a few of the rows' elements


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_a_block_trains_as_on_a_cpu(memory):
    torch.manual_seed(0)
    block = AIMBlock(768, 12, num_tadapter=2)
    for parameter in block.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    block.memory = memory
    x, flow, found = torch.randn(1, 4, 20, 768), torch.randn(1, 4, 20, 768), {}
    for device in ("cpu", "cuda"):
        held = hold_trunk(copy.deepcopy(block).to(device), EIGHT_BITS)
        leaf = x.clone().to(device).requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            out = held(leaf)
        out.backward(flow.to(device, out.dtype))
        found[device] = [out, leaf.grad, *(p.grad for p in held.parameters() if p.grad is not None)]
    for got, wanted in zip(found["cuda"], found["cpu"], strict=True):
        assert relative(got, wanted) < 0.04


@pytest.mark.parametrize("num_tadapter", [1, 2])
def test_neighbours_have_the_error_that_they_have_on_a_cpu(num_tadapter):
    """Their norms are shared and folded, their gradients rounded where they are written."""
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList(AIMBlock(768, 12, num_tadapter=num_tadapter) for _ in range(2))
    for name, parameter in blocks.named_parameters():
        if "ln_" in name or parameter.requires_grad:
            torch.nn.init.normal_(parameter, float("ln_" in name and "weight" in name), 0.02)
    x, flow, found = torch.randn(1, 4, 20, 768), torch.randn(1, 4, 20, 768), []
    exact, held = copy.deepcopy(blocks).double(), hold_trunk(blocks.cuda(), EIGHT_BITS)
    assert all(block.held_norms.scaled.qkv for block in held)
    for side, device in ((exact, "cpu"), (held, "cuda")):
        leaf = x.to(device, torch.float64 if side is exact else torch.float32).requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=side is held), formed_together(side, leaf):
            out = leaf
            for block in side:
                out = block(out)
        out.backward(flow.to(device, out.dtype))
        found.append([out, leaf.grad, *(p.grad for p in side.parameters() if p.grad is not None)])
    for truth, got in zip(*found, strict=True):
        assert relative(got, truth) < 0.13
