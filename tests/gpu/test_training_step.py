"""The whole model on the device: gradients by memory word, compiled, and captured in a CUDA graph."""

import copy

import pytest
import torch
import torch.nn.functional as F

from aim_fast.models.registry import create_model
from aim_kernels import AIMBlock, error_rule, hold_trunk
from bench.published import published


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = create_model("aim_vit_b16_clip", num_frames=8, num_classes=10, depth=3, head_dropout=0.0, drop_path=0.0)
    for name, parameter in made.named_parameters():
        if "Adapter" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return made.cuda()


def gradients(model, clips, labels, autocast=True):
    model.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(model(clips).float(), labels)
    loss.backward()
    return {name.replace("block.", ""): p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def clips_and_labels():
    generator = torch.Generator("cuda").manual_seed(0)
    clips = torch.randint(0, 256, (2, 8, 224, 224, 3), dtype=torch.uint8, device="cuda", generator=generator)
    return clips, torch.tensor([1, 7], device="cuda")


def fused(model, memory):
    side = hold_trunk(copy.deepcopy(model), torch.bfloat16)
    for block in side.modules():
        if isinstance(block, AIMBlock):
            block.memory = memory
    return side


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_gradient_error_is_the_published_one(memory, model):
    batch = clips_and_labels()
    truth, side = gradients(published(model), *batch, autocast=False), fused(model, memory)
    assert all(block.held_norms for block in side.modules() if isinstance(block, AIMBlock))
    baseline, found = gradients(published(model), *batch), gradients(side, *batch)
    for name, exact in truth.items():
        error_rule.hold(found[name], baseline[name], exact, times=1.25, beside=1e-3, name=name)


def test_compiled_step_equals_eager(model):
    batch, side = clips_and_labels(), fused(model, "fast")
    for block in side.modules():
        if isinstance(block, AIMBlock):
            block.held_norms = None  # a compiler has the norms as they are
    eager = gradients(side, *batch)
    compiled = torch.compile(side, fullgraph=True)
    found = {name.removeprefix("_orig_mod."): gradient for name, gradient in gradients(compiled, *batch).items()}
    for name, wanted in eager.items():
        assert ((found[name] - wanted).norm() / wanted.norm()).item() < 0.02, name


def test_step_captured_in_a_cuda_graph_equals_eager(model):
    clips, labels = clips_and_labels()
    side = fused(model, "fast")
    expected = gradients(side, clips, labels)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            gradients(side, clips, labels)
    torch.cuda.current_stream().wait_stream(stream)
    side.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        F.cross_entropy(side(clips).float(), labels).backward()
    for parameter in side.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    graph.replay()
    for name, parameter in side.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad.double(), expected[name], atol=1e-4, rtol=0.02)
