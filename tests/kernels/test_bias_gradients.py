"""The gradients of an adapter's biases on a CPU, whole and in parts, against float64."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels.bias_gradients import Biases, bias_gradients, gelu_gradients, parts_of
from aim_kernels.weights import AdapterWeights
from aim_kernels.wide_activation import wide_activation_backward_reference, wide_activation_reference


def adapter(parts):
    parts = () if parts == 1 else (parts,)
    return AdapterWeights(*(torch.randn(shape) for shape in ((20, 30), (*parts, 20), (30, 20), (*parts, 30))))


def held(biases, weights, du, rows):
    for got, like, x in zip(biases, (weights.b1, weights.b2), (du, rows), strict=True):
        assert got.shape == like.shape
        assert got.dtype == like.dtype
        error_rule.hold(got.sum(0) if got.ndim == 2 else got, x.float().sum(0), x.double().sum(0))


@pytest.mark.parametrize("parts", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 700])
def test_sums(rows, dtype, parts, tier):
    weights, du, more = adapter(parts), torch.randn(rows, 45).to(dtype)[:, 20:40], torch.randn(rows // 30 + 1, 30)
    held(bias_gradients(weights, du, more), weights, du, more)
    assert bias_gradients(weights, du, None).b2 is None
    assert torch.equal(bias_gradients(weights, None, more).b2, bias_gradients(weights, du, more).b2)
    assert bias_gradients(weights, None, None) == Biases()


@pytest.mark.parametrize("parts", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_through_the_activation(dtype, parts, tier):
    weights, dy, u = adapter(parts), torch.randn(70, 20).to(dtype), torch.randn(70, 20).to(dtype)
    du, hidden, biases = gelu_gradients(weights, dy, u, dy @ torch.randn(20, 30).to(dtype))
    how = (0, "gelu", None)
    truth = wide_activation_backward_reference(dy.double(), u.double(), *how)
    error_rule.hold(du, wide_activation_backward_reference(dy, u, *how), truth)
    error_rule.hold(hidden, wide_activation_reference(u, *how), wide_activation_reference(u.double(), *how))
    assert [x.shape for x in biases] == [weights.b1.shape, weights.b2.shape]
    error_rule.hold(biases.b1.reshape(-1, 20).sum(0), du.float().sum(0), du.double().sum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("parts", [1, 5])
def test_opcheck(parts, dtype):
    x, rows, tests = torch.randn(6, 20).to(dtype), torch.randn(5, 30), ("test_schema", "test_faketensor")
    for more in (rows, None):
        torch.library.opcheck(torch.ops.aim.column_sums.default, (x, more, parts), test_utils=tests)
        operands = (x, x.clone(), more, parts, None if more is None else torch.rand(6))
        torch.library.opcheck(torch.ops.aim.gelu_gradients.default, operands, test_utils=tests)


def test_parts_are_as_many_as_the_rows_fill():
    assert [parts_of(rows) for rows in (1, 64, 65, 500, 50_432, 10**7)] == [1, 1, 2, 8, 256, 256]
