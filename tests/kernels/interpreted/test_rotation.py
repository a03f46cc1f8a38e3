"""The Triton kernel of the rotation: both layouts, a table for all heads or each, head widths off powers of two."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels.registration import OPERATORS
from aim_kernels.rotation import rotation_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("shared", "d"), [(True, 32), (False, 20), (True, 88)])
def test_rotation(shared, d, interleaved, inverse, dtype):
    torch.manual_seed(0)
    qkv, angles = torch.randn(2, 3, 11, 3 * 2 * d).to(dtype), torch.randn(*(() if shared else (2,)), 6, d // 2)
    table = torch.cat([angles.sin(), angles.cos()], -1)
    got = OPERATORS["rotation"].triton(qkv, table, 2, interleaved, inverse)
    truth = rotation_reference(qkv.double(), table.double(), 2, interleaved, inverse)
    error_rule.hold(got, rotation_reference(qkv, table, 2, interleaved, inverse), truth)
    qkv[0, 0, 0] = float("inf")
    assert not OPERATORS["rotation"].triton(qkv, table, 2, interleaved, inverse).isnan().any()
