"""What a model costs: multiply-adds of a forward pass, counted by running it on the meta device, and parameters.

Counted are the products (linear, convolution, attention), as the published tables do: one multiply-add is one FLOP
there, and "GFLOPs" means 10⁹ multiply-adds. Norms, activations, softmax and additions are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aim_fast.models.registry import MODELS, create_model, list_models
from aim_fast.models.video_model import VideoModel
from aim_kernels import AIMBlock


def multiply_adds(model: VideoModel) -> int:
    """Multiply-adds of one forward pass over one clip; the model is best made under ``torch.device("meta")``.

    The published structure is counted: the fused blocks compute the same function in fewer products.
    """
    shape = (1, 3, model.num_frames, model.img_size, model.img_size)
    blocks = [block for block in model.modules() if isinstance(block, AIMBlock)]
    backends = [block.backend for block in blocks]
    parameter = next(model.parameters())
    for block in blocks:
        block.backend = "reference"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(shape, device=parameter.device, dtype=parameter.dtype))
    for block, backend in zip(blocks, backends):
        block.backend = backend
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) numbers of parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable)


def model_table(
    frames: Sequence[int] = (8, 16, 32), views: int = 3, num_tadapter: int = 1, num_classes: int = 400
) -> list[dict[str, Any]]:
    """One row per model and number of frames: ``name, frames, views, params, trainable, gflops``.

    ``gflops`` are 10⁹ multiply-adds of all ``views`` of one clip together, as published tables give them.
    """
    rows = []
    for name in list_models():
        for num_frames in frames:
            overrides = {"num_frames": num_frames, "num_tadapter": num_tadapter, "num_classes": num_classes}
            params, trainable, products = _count_by_depth(name, overrides)
            row = {"name": name, "frames": num_frames, "views": views, "params": params, "trainable": trainable}
            rows.append(row | {"gflops": round(products * views / 1e9, 3)})
    return rows


def _count_by_depth(name: str, overrides: Mapping[str, Any]) -> tuple[int, int, int]:
    """(parameters, trainable parameters, multiply-adds): blocks are alike, so two depths tell every other."""
    depth = MODELS[name].arguments["depth"]
    counts = []
    for blocks in (1, 2):
        with torch.device("meta"):
            model = create_model(name, **overrides, depth=blocks).eval()
        counts.append((*count_parameters(model), multiply_adds(model)))
    params, trainable, products = (one + (depth - 1) * (two - one) for one, two in zip(*counts))
    return params, trainable, products
