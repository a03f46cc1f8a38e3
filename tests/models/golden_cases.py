"""The golden cases of the peers: where they lie, and a model held to one of them in float64."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open

from aim_fast.models.weights.flax import from_flax

GOLDEN = Path(__file__).parents[1] / "golden"


def assert_relative(got, truth, tolerance=1e-8, what=""):
    assert got.shape == truth.shape, what
    assert got.dtype == truth.dtype, what
    assert (got - truth).norm() <= tolerance * truth.norm(), what


@dataclass
class Found:
    """Of one loss: features, logits, the loss, and the gradients of the clip and of all that requires one."""

    model: torch.nn.Module
    truth: dict[str, torch.Tensor]
    features: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor
    clip: torch.Tensor

    @property
    def parameters(self):
        return dict(self.model.trainable_parameters())

    def assert_golden(self, zero=()):
        """Everything but the features, whose layout is each case's own.

        ``zero``: published names whose gradient is nothing but rounding.
        """
        assert_relative(self.logits, self.truth["logits"])
        assert_relative(self.loss.reshape(1), self.truth["loss"].reshape(1))
        assert_relative(self.clip.grad, self.truth["grad_input"])
        for name, parameter in self.model.named_parameters():
            assert (parameter.grad is not None) is parameter.requires_grad, name
            published = self.model.published_name(name)
            if published in zero:
                assert parameter.grad.norm() <= 1e-12, name
            elif parameter.requires_grad:
                assert_relative(parameter.grad, self.truth[f"grad/{published}"], what=name)


def gradients_of(model, truth):
    """A model of float64 on a case's clip, forward and backward."""
    clip = truth["input"].double().requires_grad_(True)
    features = model.forward_features(clip)
    logits = model.forward_head(features)
    loss = F.cross_entropy(logits, truth["label"])
    loss.backward()
    return Found(model, truth, features, logits, loss, clip)


@dataclass
class Case:
    """A case of a method: ``state`` by published names, all tensors in ``truth``, what trains, and of what a gradient
    is nothing but rounding."""

    config: dict[str, Any]
    state: dict[str, torch.Tensor]
    truth: dict[str, torch.Tensor]
    trainable: set[str]
    zero: set[str]


def peer_case(name, folder=GOLDEN):
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        truth = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config, trainable, zero = (json.loads(file.metadata()[key]) for key in ("config", "trainable", "zero_grad"))
    state = {key.removeprefix("state/"): tensor for key, tensor in truth.items() if key.startswith("state/")}
    return Case(config, state, truth, set(trainable), set(zero))


@dataclass
class FlaxCase:
    """A case of a model of flax: ``published`` by its own names, ``state`` and the gradients in ``truth`` by ours."""

    config: dict[str, Any]
    published: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]
    truth: dict[str, torch.Tensor]


def flax_case(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        truth = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config, zero = (json.loads(file.metadata()[key]) for key in ("config", "zero_grad"))
    published, gradients = (
        {key.removeprefix(part): tensor for key, tensor in truth.items() if key.startswith(part)}
        for part in ("state/", "grad/")
    )
    gradients |= {key: torch.zeros_like(published[key], dtype=torch.float64) for key in zero}
    truth |= {f"grad/{key}": tensor for key, tensor in from_flax(gradients).items()}
    return FlaxCase(config, published, from_flax(published), truth)
