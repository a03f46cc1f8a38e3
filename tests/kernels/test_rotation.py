"""aim::rotation on CPU, on every tier, against float64 and against timm's own rotation."""

import pytest
import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat

from aim_kernels import error_rule
from aim_kernels.rotation import Rotation, rotated, rotation_reference

B, T, N, HEADS, PREFIX = 2, 3, 9, 3, 2


def packed(d, dtype=torch.float32):
    return torch.randn(B, T, N, 3 * HEADS * d).to(dtype)


def a_table(d, shared=True, dtype=torch.float32):
    """Sines and cosines of angles, of each patch, or of each head and patch."""
    angles = torch.randn(*(() if shared else (HEADS,)), N - PREFIX, d // 2, dtype=dtype)
    return torch.cat([angles.sin(), angles.cos()], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d", [64, 44, 20])
def test_value_and_gradient(d, shared, interleaved, dtype, tier):
    torch.manual_seed(0)
    table = a_table(d, shared)

    def fused(x):
        return rotated(x, Rotation(table, interleaved), HEADS)

    def plain(x):
        return rotation_reference(x, table.to(x.dtype), HEADS, interleaved)

    for name, sides in error_rule.value_and_gradient(fused, plain, packed(d, dtype)).items():
        error_rule.hold(*sides, name=name)


@pytest.mark.parametrize("interleaved", [False, True])
def test_it_is_timms_rotation_of_the_patches_alone(interleaved):
    d = 8
    qkv, table = packed(d, torch.float64), a_table(d, dtype=torch.float64)
    got = rotated(qkv, Rotation(table, interleaved), HEADS).unflatten(-1, (3, HEADS, d))
    parts = qkv.unflatten(-1, (3, HEADS, d))
    twice = [p.repeat_interleave(2, -1) if interleaved else p.repeat(1, 2) for p in table.chunk(2, -1)]
    truth = apply_rot_embed_cat(parts[:, :, PREFIX:, :2].movedim(2, -2), torch.cat(twice, -1), half=not interleaved)
    torch.testing.assert_close(got[:, :, PREFIX:, :2], truth.movedim(-2, 2))
    assert torch.equal(got[:, :, :PREFIX], parts[:, :, :PREFIX])
    assert torch.equal(got[:, :, :, 2], parts[:, :, :, 2])


def test_the_inverse_turns_back(tier):
    qkv, turn = packed(32), Rotation(a_table(32))
    torch.testing.assert_close(rotated(rotated(qkv, turn, HEADS), turn, HEADS, inverse=True), qkv)


def test_it_keeps_the_table_alone():
    kept, table = [], a_table(16)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        rotated(packed(16).requires_grad_(), Rotation(table), HEADS)
    assert [t.shape for t in kept] == [table.shape]


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_table_that_trains_gets_its_gradient(interleaved):
    table, qkv = a_table(8, False, torch.float64).requires_grad_(), packed(8, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: rotated(x, Rotation(t, interleaved), HEADS), (qkv, table))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    qkv = packed(8, dtype).requires_grad_()
    torch.library.opcheck(torch.ops.aim.rotation.default, (qkv, a_table(8), HEADS, False, False))


def test_compiles_whole_and_equals_eager():
    turn, qkv = Rotation(a_table(8)), packed(8)
    eager, compiled = qkv.clone().requires_grad_(), qkv.clone().requires_grad_()
    rotated(eager, turn, HEADS).square().sum().backward()
    step = torch.compile(rotated, fullgraph=True, backend="aot_eager")
    step(compiled, turn, HEADS).square().sum().backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


def test_empty_strided_and_nan(tier):
    turn = Rotation(a_table(16))
    assert rotated(packed(16)[:0], turn, HEADS).shape == (0, T, N, 144)
    wide = torch.randn(B, T, N, 151)[..., 3:147]
    torch.testing.assert_close(rotated(wide, turn, HEADS), rotated(wide.contiguous(), turn, HEADS))
    wide = wide.contiguous()
    wide[0, 0, PREFIX, 0] = float("nan")
    assert rotated(wide, turn, HEADS).isnan().sum() == 2


def test_sizes_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="heads of even width"):
        rotated(torch.randn(1, 1, 4, 27), Rotation(torch.randn(4, 3)), 3)
    with pytest.raises(ValueError, match=r"expected a table \[P, 8\]"):
        rotated(packed(8), Rotation(torch.randn(4, 16)), HEADS)
    with pytest.raises(ValueError, match="of each of 3 heads"):
        rotated(packed(8), Rotation(torch.randn(2, 4, 8)), HEADS)
