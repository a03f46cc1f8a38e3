"""Every model on the device, by its Triton kernels, beside the same model on the CPU in plain torch."""

import copy

import pytest
import torch
import torch.nn.functional as F

from aim_fast.models.heads import OF_METHODS
from aim_fast.models.methods import METHODS
from aim_kernels import AIMBlock
from tests.models.small_families import EVERY_FAMILY, family_frames, family_model
from tests.models.test_contract import CASES

LABELS = torch.tensor([0, 1])


@pytest.fixture(autouse=True)
def single_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the stem's convolution


def plain(model):
    """A copy whose blocks run in plain torch."""
    twin = copy.deepcopy(model)
    for block in twin.modules():
        if isinstance(block, AIMBlock):
            block.backend = "reference"
    return twin


def gradients(model, clips):
    """Of all that trains, after one loss, and the logits; float64, on the CPU."""
    model.zero_grad()
    logits = model(clips)
    F.cross_entropy(logits, LABELS.to(logits.device)).backward()
    found = {name: parameter.grad.double().cpu() for name, parameter in model.trainable_parameters()}
    return {"logits": logits.detach().double().cpu(), **found}


def assert_runs_as_on_the_cpu(model, clips):
    truth = gradients(plain(model), clips)
    found = gradients(model.cuda(), clips.cuda())
    whole = torch.cat([wanted.flatten() for name, wanted in truth.items() if name != "logits"]).norm()
    for name, wanted in truth.items():
        size = wanted.norm() if name == "logits" else wanted.norm() + 1e-3 * whole
        error = ((found[name] - wanted).norm() / size).item()
        assert error < 1e-3, f"{name}: off by {error:.3g}"


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("full", *OF_METHODS)])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_families_of_trunks(family, method):
    assert_runs_as_on_the_cpu(family_model(family, method), family_frames(family))


@pytest.mark.parametrize("memory", ["balanced", "lean"])
@pytest.mark.parametrize("family", EVERY_FAMILY[::3])
def test_what_is_formed_again(family, memory):
    assert_runs_as_on_the_cpu(family_model(family, memory=memory), family_frames(family))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_models_of_the_table(case):
    assert_runs_as_on_the_cpu(case.make(), case.clips())


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_half_precision(family):
    """Under bf16 autocast it is no further from float32 than plain torch under autocast is."""
    model, clips = family_model(family), family_frames(family)
    truth = gradients(plain(model), clips)

    def error(side):
        with torch.autocast("cuda", torch.bfloat16):
            found = gradients(side.cuda(), clips.cuda())
        flat = (torch.cat([x[name].flatten() for name in truth]) for x in (found, truth))
        return torch.dist(*flat).item()

    assert error(copy.deepcopy(model)) <= 1.5 * error(plain(model))
