"""Gradient error of everything trainable against float64: at most 1.25 × that of the published structure in bf16."""

import copy

import pytest
import torch
from torch import nn

from aim_kernels import AIMBlock, error_rule, hold_trunk
from bench.published import published


@pytest.fixture(scope="module")
def blocks():
    torch.manual_seed(0)
    model = nn.Sequential(*(AIMBlock(768, 12, num_tadapter=2) for _ in range(2)))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.02)
    return model


def gradients(model, x, flow, autocast):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    y.backward(flow)
    named = {name.replace("block.", ""): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: gradient.double() for name, gradient in {"x": x.grad, **named}.items()}


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_gradient_error_of_a_b16_sized_block(memory, blocks):
    generator = torch.manual_seed(1)
    x, flow = (torch.randn(1, 4, 20, 768, generator=generator) for _ in range(2))
    truth = gradients(published(blocks).double(), x.double(), flow.double(), autocast=False)
    baseline = gradients(published(blocks), x, flow, autocast=True)
    fused = hold_trunk(copy.deepcopy(blocks), torch.bfloat16)
    for block in fused:
        block.memory = memory
    found = gradients(fused, x, flow, autocast=True)
    assert found.keys() == truth.keys()
    for name, exact in truth.items():
        error_rule.hold(found[name], baseline[name], exact, times=1.25, beside=0.0, name=name)


def test_hold_trunk_leaves_the_trained_and_the_norms_alone(blocks):
    held = hold_trunk(copy.deepcopy(blocks), torch.bfloat16)
    for name, parameter in held.named_parameters():
        half = not parameter.requires_grad and "ln_" not in name
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32), name
