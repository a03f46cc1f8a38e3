"""The golden cases of the peers: where they lie, and a model held to one of them in float64."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

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

    def assert_golden(self):
        """Everything but the features, whose layout is each case's own."""
        assert_relative(self.logits, self.truth["logits"])
        assert_relative(self.loss.reshape(1), self.truth["loss"].reshape(1))
        assert_relative(self.clip.grad, self.truth["grad_input"])
        for name, parameter in self.model.named_parameters():
            assert (parameter.grad is not None) is parameter.requires_grad, name
            if parameter.requires_grad:
                assert_relative(parameter.grad, self.truth[f"grad/{self.model.published_name(name)}"], what=name)


def gradients_of(model, truth):
    """A model of float64 on a case's clip, forward and backward."""
    clip = truth["input"].double().requires_grad_(True)
    features = model.forward_features(clip)
    logits = model.forward_head(features)
    loss = F.cross_entropy(logits, truth["label"])
    loss.backward()
    return Found(model, truth, features, logits, loss, clip)
