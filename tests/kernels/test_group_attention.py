"""aim::group_attention on a CPU: every backend against float64, gradients of qkv and bias, and as an operator."""

import pytest
import torch

from aim_kernels import error_rule
from aim_kernels.group_attention import backend_missing, group_attention, group_attention_reference

# frames, groups, length, own bias a group, heads, head dimension
SHAPES = [(2, 4, 49, True, 2, 16), (3, 10, 4, False, 1, 24), (1, 1, 80, False, 2, 8)]


def inputs(shape, dtype=torch.float32):
    f, g, length, own, h, d = shape
    torch.manual_seed(0)
    qkv, dout = torch.randn(f, g * length, 3 * h * d).to(dtype), torch.randn(f, g * length, h * d).to(dtype)
    return qkv, dout, torch.randperm(g * length).view(g, length).int(), torch.randn(g if own else 1, h, length, length)


def one_by_one(qkv, table, bias, heads):
    """The formula, a frame, a group and a head at a time."""
    out = qkv.new_zeros(*qkv.shape[:2], qkv.shape[2] // 3)
    d = out.shape[2] // heads
    for frame, tokens in enumerate(qkv):
        for group, members in enumerate(table.long()):
            q, k, v = tokens[members].view(len(members), 3, heads, d).unbind(1)
            for head in range(heads):
                scores = q[:, head] @ k[:, head].T / d**0.5 + bias[group % len(bias), head]
                out[frame, members, head * d : (head + 1) * d] = scores.softmax(-1) @ v[:, head]
    return out


@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_lose_no_more_than_plain_torch(shape, dtype, backend):
    qkv, dout, table, bias = inputs(shape, dtype)
    found = []
    for function, kind in ((group_attention, dtype), (one_by_one, dtype), (one_by_one, torch.float64)):
        x = qkv.to(kind, copy=True).requires_grad_()
        b = bias.to(torch.float32 if function is group_attention else kind, copy=True).requires_grad_()
        arguments = (x, table, b, shape[4]) + ((backend,) if function is group_attention else ())
        out = function(*arguments)
        out.backward(dout.to(kind))
        found.append((out, x.grad, b.grad))
    for got, plain, truth in zip(*found, strict=True):
        error_rule.hold(got, plain, truth)


def test_the_operator_keeps_no_more_than_qkv_and_bias():
    qkv, _, table, bias = inputs(SHAPES[0])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        group_attention(qkv.requires_grad_(), table, bias, 2)
    assert sum(x.numel() for x in kept if x.is_floating_point()) == qkv.numel() + bias.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    qkv, dout, table, bias = inputs((2, 3, 4, False, 1, 8), dtype)
    operands = (qkv.requires_grad_(), table, bias.requires_grad_(), 1)
    torch.library.opcheck(torch.ops.aim.group_attention.default, operands)
    for needs_bias in (True, False):
        arguments = (dout, qkv.detach(), table, bias.detach(), 1, needs_bias)
        torch.library.opcheck(torch.ops.aim.group_attention_backward.default, arguments)


def test_hidden_tokens_are_not_seen():
    qkv, _, table, bias = inputs((1, 2, 8, False, 1, 8))
    bias[..., :4, 4:] = -100.0
    changed = qkv.clone()
    changed[:, table[:, 4:].flatten().long()] += 1.0
    seen, before = (group_attention_reference(x, table, bias, 1)[0, table[:, :4].long()] for x in (changed, qkv))
    torch.testing.assert_close(seen, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "packed qkv .* in 5 heads"),
        ({"table": torch.zeros(3, 5)}, "a table .* of the 12 tokens"),
        ({"bias": torch.zeros(2, 1, 4, 4)}, r"a bias \[1 or 3, 1, 4, 4\]"),
        ({"backend": "triton"}, "needs a CUDA tensor"),
        ({"backend": "flash"}, "is none of"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    qkv, _, table, bias = inputs((2, 3, 4, False, 1, 8))
    arguments = {"qkv": qkv, "table": table, "bias": bias, "num_heads": 1, "backend": "auto", **change}
    with pytest.raises(ValueError, match=message):
        group_attention(**arguments)


def test_xformers_is_not_offered_where_it_cannot_serve():
    assert "CUDA" in backend_missing("xformers", torch.device("cpu"))
    assert "flash3 does not attend within groups" in backend_missing("flash3", torch.device("cpu"))
