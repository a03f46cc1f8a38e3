"""What a model costs: multiply-adds of a forward pass, counted by running it on the meta device, and parameters.

Counted are the products (linear, convolution, attention), as the published tables do: one multiply-add is one FLOP
there, and "GFLOPs" means 10⁹ multiply-adds. Norms, activations, softmax and additions are not counted. Attention over
packed qkv, whose operators are opaque, has its formula here: two products of L² multiply-adds a channel each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import aim_kernels.group_attention
import aim_kernels.spatial_attention
import aim_kernels.temporal_attention  # noqa: F401 - these define the operators that are counted below
from aim_fast.errors import UsageError
from aim_fast.models.composition import about_of
from aim_fast.models.methods import METHODS
from aim_fast.models.registry import create_model, find_entry
from aim_fast.models.video_model import VideoModel


def multiply_adds(model: VideoModel, stored: bool = False) -> int:
    """Multiply-adds of one forward pass over one clip, or over its frozen features where those are ``stored``; the
    model is best made under ``torch.device("meta")``.

    The published structure is counted: a module with a ``backend`` "fused" runs its "reference" meanwhile, because
    fused blocks compute the same function in fewer products.
    """
    sides, parameter = (model.img_size, model.img_size), next(model.parameters())
    if stored:
        clips = torch.empty((1, model.num_frames, *sides, 3), device=parameter.device, dtype=torch.uint8)
        with torch.no_grad():
            clips = model.frozen_features(clips)
    else:
        clips = torch.empty((1, 3, model.num_frames, *sides), device=parameter.device, dtype=parameter.dtype)
    fused = [module for module in model.modules() if vars(module).get("backend") == "fused"]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    for module in fused:
        module.backend = "reference"  # type: ignore[assignment]
    model.eval().requires_grad_(False)  # which the counter's hooks would look for a graph of
    try:
        products = sdpa_kernel(SDPBackend.MATH)  # whose products are seen; a fused kernel's on a CPU are not
        with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter, torch.no_grad(), products:
            model(clips)
    finally:
        for module in fused:
            module.backend = "fused"  # type: ignore[assignment]
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) numbers of parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable)


def count_costs(name: str, overrides: Mapping[str, Any]) -> tuple[int, int, int]:
    """(parameters, trainable parameters, multiply-adds of one clip) of ``create_model(name, **overrides)``.

    Nothing is computed and no memory taken. Where ``depth`` blocks are alike, two shallow models tell every deeper
    one: that is fast enough for a table of all models.
    """
    entry = find_entry(name, overrides.get("head"), overrides.get("method"))
    depth = overrides.get("depth", entry.arguments.get("depth"))
    if entry.method in METHODS and not METHODS[entry.method].blocks_alike:
        return _count(name, overrides)
    alike = {"method", "head", *(key for key, about in about_of(entry).items() if about.alike)}
    if "depth" not in alike or not isinstance(depth, int) or depth <= 2 or not overrides.keys() <= alike:
        return _count(name, overrides)
    try:
        counts = [_count(name, {**overrides, "depth": blocks}) for blocks in (1, 2)]
    except UsageError:  # blocks that are not alike
        return _count(name, overrides)
    params, trainable, products = (one + (depth - 1) * (two - one) for one, two in zip(*counts))
    return params, trainable, products


def _count(name: str, overrides: Mapping[str, Any]) -> tuple[int, int, int]:
    with torch.device("meta"):
        model = create_model(name, **overrides).eval()
    return (*count_parameters(model), multiply_adds(model))


def _group_products(qkv: Sequence[int], table: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    frames, n, packed = qkv
    return 4 * frames * n * table[1] * (packed // 3)


def _temporal_products(qkv: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    b, t, n, packed = qkv
    return 4 * b * n * t * t * (packed // 3)


def _spatial_products(qkv: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    *leading, n, packed = qkv
    return 4 * math.prod(leading) * n * n * (packed // 3)


_ATTENTION = {
    torch.ops.aim.temporal_attention: _temporal_products,
    torch.ops.aim.spatial_attention: _spatial_products,
    torch.ops.aim.group_attention: _group_products,
}
