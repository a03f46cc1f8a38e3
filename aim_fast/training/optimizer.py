"""Optimiser groups and learning rates: those of AIM's recipes (Yang et al., ICLR 2023), and what its peers have.

AdamW, or SGD with momentum. Without more said, no weight decay on layer norms, class and positional embeddings, and
what the method says; the classifier has the full learning rate, everything else ``backbone_lr_factor`` of it.
``no_decay`` and ``lr_factors`` say it otherwise. The rate begins with a linear warm-up stepped each iteration, and
falls along a cosine, by default stepped once an epoch:

    lr(e, i) = (f + ½·(lr − f)·(1 + cos(π·e/E))) · w,   w = 1 − (1 − factor)·(1 − i/W) for i < W, else 1

with e the epoch, i the step since the start, E the epochs, W the steps of the warm-up, and f ``min_lr``. With
``schedule`` "steps", as most peers have it, the cosine begins where the warm-up ends and is stepped each iteration, n
steps an epoch:

    lr(i) = lr · (factor + (1 − factor) · i/W) for i < W, else f + ½·(lr − f)·(1 + cos(π·(i − W)/(n·E − W)))

and with "drops" the rate stays, and falls to a tenth at the epochs of ``lr_drops``.

With ``layer_decay`` d a trunk of L blocks has factors by depth too (BEiT, Bao et al., ICLR 2022; VideoMAE): d^(L+1) for
the stem, its embeddings and tokens, d^(L−i) for what is in block i from 0, and 1 for what comes after the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from aim_fast.errors import UsageError
from aim_fast.models.video_model import PARTS, VideoModel
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_groups import NO_DECAY


def build_optimizer(model: VideoModel, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the model's trainable parameters; one fused launch a step.

    A group has one weight decay and one factor on the learning rate, ``lr_factor``. Raises UsageError for a pattern of
    the recipe's that is no trained parameter's.
    """
    asked, trained = recipe.optimisation, dict(model.trainable_parameters())
    factors = [(pattern, float(factor)) for pattern, _, factor in (one.rpartition("=") for one in asked.lr_factors)]
    _check_patterns("lr_factors", [pattern for pattern, _ in factors], PARTS, trained)
    _check_patterns("no_decay", asked.no_decay, NO_DECAY, trained)
    free, factors = _undecayed(model, trained, asked.no_decay), [*factors, *model.lr_factors.items()]
    layers = model.layer_numbers() if asked.layer_decay < 1 else {}
    top = max(layers.values(), default=0)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in trained.items():
        decay = 0.0 if name in free else asked.weight_decay
        factor = _factor(name, model.part_of(name), factors, asked.backbone_lr_factor)
        factor *= asked.layer_decay ** (top - layers[name]) if layers else 1.0
        group = groups.setdefault((decay, factor), {"params": [], "weight_decay": decay, "lr_factor": factor})
        group["params"].append(parameter)
    if asked.optimizer == "sgd":
        return torch.optim.SGD(groups.values(), lr=asked.lr, momentum=asked.momentum, fused=True)
    first, second = asked.betas
    return torch.optim.AdamW(groups.values(), lr=asked.lr, betas=(first, second), fused=True)


def _check_patterns(field: str, patterns: Iterable[str], words: Iterable[str], trained: Iterable[str]) -> None:
    for pattern in patterns:
        if pattern not in words and not any(fnmatchcase(name, pattern) for name in trained):
            raise UsageError(
                f"{field}: no parameter that trains is named {pattern}: give one of {', '.join(words)}, or a pattern "
                f"of names, such as {next(iter(trained))}"
            )


def _factor(name: str, part: str, factors: Iterable[tuple[str, float]], others: float) -> float:
    """Of the first of ``factors`` whose pattern is the parameter's part or fits its name."""
    fitting = (factor for pattern, factor in factors if pattern == part or fnmatchcase(name, pattern))
    return next(fitting, 1.0 if name.startswith("fc_cls.") else others)


def _undecayed(model: VideoModel, trained: Mapping[str, nn.Parameter], words: Iterable[str]) -> set[str]:
    """Names of the parameters that one of ``words``, of ``NO_DECAY`` or a pattern, frees of weight decay."""
    kinds = {
        "default": model.no_weight_decay(),
        "norms": model.norm_parameters(),
        "biases": {name for name in trained if name.endswith("bias")},
        "vectors": {name for name, parameter in trained.items() if parameter.ndim <= 1},
        "embeddings": model.embedding_parameters(),
    }
    return {name for name in trained for word in words if name in kinds.get(word, ()) or fnmatchcase(name, word)}


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of step ``step`` (from 0), before a group's factor."""
    asked, epoch = recipe.optimisation, step // steps_per_epoch
    warmup = asked.warmup_epochs * steps_per_epoch
    if asked.schedule == "drops":
        rate = asked.lr * 0.1 ** sum(epoch >= drop for drop in asked.lr_drops)
    else:
        past = epoch / asked.epochs
        if asked.schedule == "steps":
            past = max(step - warmup, 0) / max(asked.epochs * steps_per_epoch - warmup, 1)
        rate = asked.min_lr + 0.5 * (asked.lr - asked.min_lr) * (1 + math.cos(math.pi * past))
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
