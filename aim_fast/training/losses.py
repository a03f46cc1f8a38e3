"""Losses of a training step that are no model's own: several labels a clip, and learning from a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def multi_label_losses(logits: Tensor, labels: Tensor, smoothing: float, positive: Tensor | None = None) -> Tensor:
    """The loss of each clip [B]: binary cross-entropy of ``logits`` [B, C], the mean over classes.

    ``labels`` [B, C] are 1 for the classes of a clip, else 0; ``smoothing`` draws them towards a half, as Keras does.
    ``positive`` [C] are factors on the terms of the classes that a clip has.
    """
    targets = labels * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none", pos_weight=positive).mean(1)


def distillation_losses(logits: Tensor, teacher: Tensor, temperature: float, multi_label: bool) -> Tensor:
    """How far each clip's scores are from the teacher's [B], both softened by ``temperature`` τ.

    τ²·KL(softmax(teacher/τ) ‖ softmax(logits/τ)), whose gradient stays as large whatever τ is (Hinton, Vinyals and
    Dean, 2015); with several labels a clip the same of every class on its own, the mean over classes.
    """
    ours, theirs = logits.float() / temperature, teacher.float() / temperature
    if multi_label:
        found = F.kl_div(F.logsigmoid(ours), F.logsigmoid(theirs), reduction="none", log_target=True)
        found = found + F.kl_div(F.logsigmoid(-ours), F.logsigmoid(-theirs), reduction="none", log_target=True)
        return temperature**2 * found.mean(1)
    found = F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), reduction="none", log_target=True)
    return temperature**2 * found.sum(1)
