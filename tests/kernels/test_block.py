"""The fused AIMBlock as a module: the published function, what it keeps for backward, compiled and checkpointed."""

import copy

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from aim_fast.models.counting.saved_bytes import saved_bytes
from aim_kernels import AIMBlock, hold_trunk
from bench.published import published

pytestmark = pytest.mark.stack

LIMIT = {"fast": 1 / 2, "balanced": 1 / 4, "lean": 1 / 20}


def blocks(depth=2, dim=64, **overrides):
    torch.manual_seed(0)
    model = nn.Sequential(*(AIMBlock(dim, 2, **overrides) for _ in range(depth)))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05)
    return model


def with_memory(model, memory):
    for block in model:
        block.memory = memory
    return model


def gradients(model, x):
    leaf = x.clone().requires_grad_()
    out = model(leaf)
    out.square().sum().backward()
    return [out.detach(), leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("memory", LIMIT)
@pytest.mark.parametrize("num_tadapter", [1, 2])
def test_keeps_no_more_than_its_share_of_the_published_bytes(num_tadapter, memory):
    model = blocks(dim=128, num_tadapter=num_tadapter)
    x = torch.randn(1, 8, 197, 128)

    def kept(side):
        def forward():
            with torch.autocast("cpu", torch.bfloat16):
                return side(x.clone().requires_grad_())

        return saved_bytes(side, forward)

    fused = hold_trunk(with_memory(copy.deepcopy(model), memory), torch.bfloat16)
    assert kept(fused) <= LIMIT[memory] * kept(published(model))


@pytest.mark.parametrize("memory", LIMIT)
def test_keeps_as_little_compiled(memory):
    """With inductor's partitioner, which merges what is formed again with the forward's where it can tell."""
    model, x = blocks(dim=128), torch.randn(1, 4, 50, 128)
    fused = hold_trunk(with_memory(copy.deepcopy(model), memory), torch.bfloat16)
    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward), partition_fn=min_cut_rematerialization_partition
    )
    compiled = torch.compile(fused, fullgraph=True, backend=backend)

    def kept(side, owner):
        def forward():
            with torch.autocast("cpu", torch.bfloat16):
                return side(x.clone().requires_grad_())

        return saved_bytes(owner, forward)

    kept(compiled, fused)
    found, eager, whole = (kept(compiled, fused), kept(fused, fused), kept(*[published(model)] * 2))
    # a compiler forgets the block's checkpoint: lean keeps the input of each sub-block
    assert found <= (whole / 8 if memory == "lean" else eager)


@pytest.mark.parametrize("memory", LIMIT)
def test_every_memory_word_gives_the_published_gradients(memory):
    model = blocks(num_tadapter=2).double()
    x = torch.randn(2, 3, 5, 64, dtype=torch.float64)
    expected = gradients(published(model), x)
    for got, wanted in zip(gradients(with_memory(model, memory), x), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_attention_runs_once_in_fast_and_twice_where_memory_is_saved():
    counts = {}
    operator = torch.ops.aim_cpu.attention_forward if hasattr(torch.ops.aim_cpu, "attention_forward") else None
    if operator is None:
        pytest.skip("aim_kernels._C is not built")
    for memory in LIMIT:
        model = with_memory(blocks(depth=1), memory)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            gradients(model, torch.randn(1, 2, 5, 64))
        counts[memory] = sum(row.count for row in profile.key_averages() if row.key == "aim_cpu::attention_forward")
    assert counts == {"fast": 2, "balanced": 4, "lean": 4}  # temporal and spatial attention, once or twice each


@pytest.mark.parametrize("memory", LIMIT)
def test_the_stream_is_narrowed_where_it_is_kept_alone(memory):
    """Of its norms an evaluation writes the results alone."""
    model, x = hold_trunk(with_memory(blocks(depth=1), memory), torch.bfloat16), torch.randn(1, 2, 5, 64)

    class Norms(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            seen.append(str(operator))
            return operator(*args, **(kwargs or {}))

    for recorded, kept in ((False, 0), (True, 3)):
        seen = []
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(recorded), Norms():
            model(x)
        assert sum("layer_norm_kept" in name for name in seen) == kept
        assert sum("aim.layer_norm" in name for name in seen) == 3


@pytest.mark.parametrize("memory", LIMIT)
def test_trains_compiled_whole_as_eager(memory):
    model = with_memory(blocks(depth=1, drop_path=0.0), memory)
    x = torch.randn(1, 3, 5, 64)
    expected = gradients(model, x)
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    out = compiled(leaf)
    out.square().sum().backward()
    found = [out.detach(), leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_no_recompilation_from_step_to_step():
    torch._dynamo.reset()
    model = blocks(depth=1, drop_path=0.2).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            compiled(torch.randn(1, 3, 5, 64, requires_grad=True)).sum().backward()


def test_checkpointing_by_the_user_gives_the_same_gradients():
    model, x = blocks(depth=1), torch.randn(1, 3, 5, 64)
    expected = gradients(model, x)
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    checkpoint(model, leaf, use_reentrant=False).square().sum().backward()
    found = [leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    for got, wanted in zip(found, expected[1:], strict=True):
        assert torch.equal(got, wanted)


def test_unknown_words_are_named():
    with pytest.raises(ValueError, match="none of fused, reference"):
        AIMBlock(64, 4, backend="triton")
    with pytest.raises(ValueError, match="none of fast, balanced, lean"):
        AIMBlock(64, 4, memory="small")
