"""Replayed operators give what they give as written, to the bit."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")
from aim_kernels import AIMBlock, _replays, hold_trunk
from aim_kernels.formed_together import formed_together


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_a_step_replayed_is_the_step_as_written(memory):
    torch.manual_seed(0)
    blocks = nn.ModuleList(AIMBlock(192, 3, drop_path=0.3, memory=memory) for _ in range(3)).cuda().train()
    for parameter in blocks.parameters():
        nn.init.normal_(parameter, std=0.05)
    hold_trunk(blocks, torch.bfloat16)
    inputs = [torch.randn(4, 8, 50, 192, device="cuda") for _ in range(2)]

    def step(x):
        torch.manual_seed(1)
        blocks.zero_grad()
        with torch.autocast("cuda", torch.bfloat16), formed_together(blocks, x):
            for block in blocks:
                x = block(x)
        x.square().mean().backward()
        return [x.detach(), *(parameter.grad for parameter in blocks.parameters() if parameter.requires_grad)]

    for _ in range(4):
        for x in inputs:
            replayed = step(x)
    _replays.pause(1)
    try:
        written = step(x)
    finally:
        _replays.pause(-1)
    assert all(torch.equal(a, b) for a, b in zip(replayed, written, strict=True))
