"""Gradient error on the golden cases, every trainable tensor: at most 1.25 × the published structure's under bf16.

These tensors are small (a bias of 5 to 32 numbers), so that the error of one clip is one throw of the rounding dice: it
is summed over the golden clip and 31 others through the golden weights, in squares, for both sides alike. The truth is
the float64 model that test_golden_outputs_and_every_gradient holds against the published gradients.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from aim_fast.models.registry import create_model
from aim_kernels import AIMBlock, hold_trunk
from bench.published import published

GOLDEN = Path(__file__).parents[1] / "golden"
CLIPS = 32


def gradients(model, clip, label, autocast):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(clip)
    F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), label).backward()
    return {name.replace("block.", ""): p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def squared_errors(model, clips, label, truths):
    errors = dict.fromkeys(truths[0], 0.0)
    for clip, truth in zip(clips, truths, strict=True):
        for name, found in gradients(model, clip, label, autocast=True).items():
            errors[name] += (found - truth[name]).square().sum().item()
    return errors


@pytest.fixture(scope="module", params=["aim_vit_clip_1t", "aim_vit_clip_2t"])
def case(request):
    """The golden model, its label, the clips, the float64 gradients of each, and the published structure's errors."""
    with safe_open(GOLDEN / f"{request.param}.safetensors", "pt") as file:
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    model = create_model("aim_vit_b16_clip", **config).eval()
    prefixes = {name: "cls_head" if name.startswith("fc_cls") else "backbone" for name in model.state_dict()}
    model.load_state_dict({name: golden[f"state/{prefix}.{name}"] for name, prefix in prefixes.items()})
    generator = torch.manual_seed(0)
    clips = [golden["input"], *(torch.randn(golden["input"].shape, generator=generator) for _ in range(CLIPS - 1))]
    exact, label = copy.deepcopy(model).double(), golden["label"]
    truths = [gradients(exact, clip.double(), label, autocast=False) for clip in clips]
    for name, gradient in truths[0].items():
        torch.testing.assert_close(gradient, golden[f"grad/{prefixes[name]}.{name}"].double())
    return model, label, clips, truths, squared_errors(published(model), clips, label, truths)


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_gradient_error_on_the_golden_cases(memory, case):
    model, label, clips, truths, allowed = case
    fused = hold_trunk(copy.deepcopy(model), torch.bfloat16)
    for block in fused.modules():
        if isinstance(block, AIMBlock):
            block.memory = memory
    found = squared_errors(fused, clips, label, truths)
    ratios = {name: (found[name] / allowed[name]) ** 0.5 for name in allowed}
    assert len(ratios) == len(list(model.trainable_parameters()))
    worst = max(ratios, key=ratios.__getitem__)
    assert ratios[worst] <= 1.25, f"{worst}: {ratios[worst]:.3f} × the published structure's error"
