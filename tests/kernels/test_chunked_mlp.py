"""The MLP over chunks of rows gives what it gives over all at once, and holds no more hidden state than a chunk's."""

import pytest
import torch

from aim_kernels import AIMBlock, chunked_mlp
from aim_kernels.joint_adaptation import joint_adaptation
from tests.kernels.test_sub_blocks import B, D, N, T, a_drop, an_adapter, mlp_trunk, normal


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(chunked_mlp, "ROWS", 7)  # of 30


@pytest.mark.parametrize("trainable", ["1111", "0110", None])
@pytest.mark.parametrize("drop", ["none", "position"])
@pytest.mark.parametrize("gated", [False, True])
def test_gives_what_all_rows_at_once_give(short_chunks, gated, drop, trainable):
    torch.manual_seed(0)
    x, flow = normal(B, T, N, D).requires_grad_(), normal(B, T, N, D)
    adapter = None if trainable is None else an_adapter(trainable)
    leaves = [x, *(w for w in adapter or () if w.requires_grad)]
    trunk, dropped = mlp_trunk(gated), a_drop(drop)
    activation = "swiglu" if gated else "quick_gelu"
    whole, *chunked = (
        joint_adaptation(x, *trunk, adapter, dropped, 0.5, activation, memory=memory)
        for memory in ("fast", "balanced", "lean")
    )
    wanted = torch.autograd.grad(whole, leaves, flow)
    for out in chunked:
        torch.testing.assert_close(out, whole)
        for found, expected in zip(torch.autograd.grad(out, leaves, flow), wanted, strict=True):
            torch.testing.assert_close(found, expected)


def largest(memory):
    """The most elements of a tensor in a training step of a block."""
    torch.manual_seed(0)
    block = AIMBlock(D, 2, memory=memory)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    with Watch():
        block(torch.randn(B, T, N, D, requires_grad=True)).sum().backward()
    return max(sizes)


def test_a_lean_block_holds_no_hidden_state_of_all_rows(short_chunks):
    rows, hidden = B * T * N, 4 * D + D // 4
    assert largest("fast") == rows * hidden
    assert largest("lean") <= rows * 3 * D
