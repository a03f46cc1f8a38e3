"""Optimiser groups and learning rates of the published recipes (Yang et al., ICLR 2023; its configuration files).

AdamW, betas 0.9 and 0.999. No weight decay on layer norms, class and positional embeddings; adapter biases and the
temporal embedding are decayed. The classifier has the full learning rate, everything else ``backbone_lr_factor`` of it.
The rate follows a cosine stepped once an epoch, with a linear warm-up stepped each iteration:

    lr(e, i) = ½·lr·(1 + cos(π·e/E)) · w,   w = 1 − (1 − factor)·(1 − i/W) for i < W, else 1

with e the epoch, i the step since the start, E the epochs, and W the steps of the warm-up. With ``schedule`` "steps",
as most peers have it, the cosine begins where the warm-up ends and is stepped each iteration, n steps an epoch:

    lr(i) = lr · (factor + (1 − factor) · i/W) for i < W, else ½·lr·(1 + cos(π·(i − W)/(n·E − W)))
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from aim_fast.models.video_model import VideoModel
from aim_fast.training.recipe import Recipe


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], no_weight_decay: set[str], recipe: Recipe
) -> list[dict]:
    """Groups for AdamW of named parameters: by weight decay and by factor on the learning rate (``lr_factor``)."""
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in parameters:
        decay = 0.0 if name in no_weight_decay else recipe.optimisation.weight_decay
        factor = 1.0 if name.startswith("fc_cls.") else recipe.optimisation.backbone_lr_factor
        group = groups.setdefault((decay, factor), {"params": [], "weight_decay": decay, "lr_factor": factor})
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: VideoModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters; one fused launch a step."""
    groups = parameter_groups(model.trainable_parameters(), model.no_weight_decay(), recipe)
    first, second = recipe.optimisation.betas
    return torch.optim.AdamW(groups, lr=recipe.optimisation.lr, betas=(first, second), fused=True)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of step ``step`` (from 0), before a group's factor."""
    asked, epoch = recipe.optimisation, step // steps_per_epoch
    warmup = asked.warmup_epochs * steps_per_epoch
    if asked.schedule == "steps":
        past = max(step - warmup, 0) / max(asked.epochs * steps_per_epoch - warmup, 1)
    else:
        past = epoch / asked.epochs
    rate = 0.5 * asked.lr * (1 + math.cos(math.pi * past))
    if step < warmup:
        rate *= 1 - (1 - asked.warmup_factor) * (1 - step / warmup)
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of every group, times its factor; in place where a captured step reads it (training/cuda_graph.py)."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate * group["lr_factor"])
        else:
            group["lr"] = rate * group["lr_factor"]
