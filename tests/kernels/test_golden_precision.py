"""Gradient error on the golden cases, every trainable tensor: at most 1.25 × the published structure's under bf16.

These tensors are small (a bias of 5 to 32 numbers), and rounding the weights to bf16 is one throw of the dice for all
clips alike: on fixed weights the worst of 25 ratios lies between 1.1 and 1.3, as the processor's products round. So
each of 32 clips has weights of its own, the golden weights for the golden clip and those within about 1 % for the
others, for both sides alike, and the relative errors are summed in squares (worst ratio over six such draws: 1.14). The
truth is the float64 model, which for the golden clip equals the published gradients.
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


def nudged(model, generator):
    """A copy whose every weight is within about 1 % of the model's."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.01 * torch.randn(weight.shape, generator=generator))
    return model


def squared_errors(draws, form):
    """Of ``form(model)``, a model's form under bf16: each tensor's squared relative error, summed over the draws."""
    errors = dict.fromkeys(draws[0][2], 0.0)
    for model, clip, truth, label in draws:
        for name, found in gradients(form(model), clip, label, autocast=True).items():
            errors[name] += ((found - truth[name]).norm() / truth[name].norm()).square().item()
    return errors


@pytest.fixture(scope="module", params=["aim_vit_clip_1t", "aim_vit_clip_2t"])
def case(request):
    """32 draws (model, clip, its float64 gradients, label), the first the golden one; the published form's errors."""
    with safe_open(GOLDEN / f"{request.param}.safetensors", "pt") as file:
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    model = create_model("aim_vit_b16_clip", **config).eval()
    prefixes = {name: "cls_head" if name.startswith("fc_cls") else "backbone" for name in model.state_dict()}
    model.load_state_dict({name: golden[f"state/{prefix}.{name}"] for name, prefix in prefixes.items()})
    generator = torch.Generator().manual_seed(0)
    clips = [golden["input"], *(torch.randn(golden["input"].shape, generator=generator) for _ in range(CLIPS - 1))]
    models = [model, *(nudged(model, generator) for _ in range(CLIPS - 1))]
    label = golden["label"]
    draws = [
        (model, clip, gradients(copy.deepcopy(model).double(), clip.double(), label, autocast=False), label)
        for model, clip in zip(models, clips, strict=True)
    ]
    for name, gradient in draws[0][2].items():
        torch.testing.assert_close(gradient, golden[f"grad/{prefixes[name]}.{name}"].double())
    return draws, squared_errors(draws, published)


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_gradient_error_on_the_golden_cases(memory, case):
    def fused(model):
        model = hold_trunk(copy.deepcopy(model), torch.bfloat16)
        for block in model.modules():
            if isinstance(block, AIMBlock):
                block.memory = memory
        return model

    draws, allowed = case
    found = squared_errors(draws, fused)
    ratios = {name: (found[name] / allowed[name]) ** 0.5 for name in allowed}
    assert len(ratios) == len(list(draws[0][0].trainable_parameters()))
    worst = max(ratios, key=ratios.__getitem__)
    assert ratios[worst] <= 1.25, f"{worst}: {ratios[worst]:.3f} × the published structure's error"
