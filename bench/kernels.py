"""Every operator beside its plain expression in torch, eager and compiled: time, bytes moved, share of the copy rate.

Forward and backward are timed together at the sizes of the model's block. Each operator is first held to the error rule
of the tests (kernels/aim_kernels/error_rule.py) on a part of the batch; where it fails, no speed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from aim_fast.models.frame_model import FrameModel
from aim_fast.models.registry import create_model
from aim_fast.timing import ratio, take_turns
from aim_kernels import error_rule
from aim_kernels.adaptation import activate, adapter_reference
from aim_kernels.adapter import adapter
from aim_kernels.choices import Activation, MLPActivation
from aim_kernels.layer_norm import layer_norm
from aim_kernels.patch_embed import patch_embed, patch_embed_reference
from aim_kernels.rotation import Rotation, rotated, rotation_reference
from aim_kernels.spatial_attention import spatial_attention
from aim_kernels.temporal_attention import temporal_attention
from aim_kernels.weights import AdapterWeights, MLPWeights
from aim_kernels.wide_activation import wide_activation
from aim_kernels.wide_swiglu import wide_swiglu
from aim_kernels.widened_mlp import wide_mlp, wide_mlp_reference
from bench.bars import draw_bars
from bench.machine_rates import copy_bandwidth


class Operator(NamedTuple):
    """A fused function and its plain twin, of the one input that is compared; adapters' weights get gradients too."""

    name: str
    fused: Callable[[Tensor], Tensor]
    plain: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    passes: int  # tensors of the input's or output's size read or written, forward and backward, at least
    elements: int | None = None  # of such a tensor, where it is not the input's size


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures and prints; ``operators`` maps a name to medians, ratios, GB/s and the share of the copy bandwidth."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    batch, frames = options.batch or (32 if on_gpu else 1), options.frames or 8
    name = options.model or "aim_vit_b16_clip"
    with torch.device("meta"):
        model = create_model(name, num_frames=frames, depth=1, num_classes=2)
    tokens = 1 + (model.img_size // model.patch_size) ** 2
    bandwidth = copy_bandwidth(device)
    results: dict[str, Any] = {"model": name, "batch": batch, "frames": frames, "operators": {}}
    results["copy_gb_per_s"] = bandwidth / 1e9
    table = Table(
        *("operator", "ms", "spread", "GB/s", "of copy", "plain eager", "plain compiled", "error / plain's"),
        title=f"operators in bf16, forward + backward, {device}",
    )
    operators = _operators(batch, frames, tokens, model.embed_dim, model.num_heads, device)
    for operator in (*operators, _stem(model, batch, device)):
        row = _measured(operator, device, bandwidth, rounds=30 if on_gpu else 7)
        results["operators"][operator.name] = row
        table.add_row(operator.name, *_cells(row))
    Console().print(table)
    if getattr(options, "out", None):
        speeds = {name: row["ratio_vs_eager"] for name, row in results["operators"].items() if "ratio_vs_eager" in row}
        draw_bars(speeds, f"times faster than plain torch, {device}, forward + backward", options.out / "kernels.png")
    return results


def _operators(batch: int, frames: int, tokens: int, width: int, heads: int, device: str) -> list[Operator]:
    b, t, n, d = batch, frames, tokens, width
    weight, bias = torch.rand(d, device=device) + 0.5, torch.randn(d, device=device)
    hidden, split, gated = 4 * d + d // 4, 4 * d, d * 8 // 3  # a gated MLP has three projections
    scores = torch.randn(1, heads, n, n, device=device)
    angles = torch.rand(n - 1, d // heads // 2, device=device) * 6
    table = torch.cat([angles.sin(), angles.cos()], -1)

    def over_time(x: Tensor) -> Tensor:
        q, k, v = x.unflatten(-1, (3, heads, d // heads)).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
        out = F.scaled_dot_product_attention(q, k, v).unflatten(0, (x.shape[0], n))
        return out.permute(0, 3, 1, 2, 4).flatten(-2)

    def over_space(x: Tensor) -> Tensor:
        q, k, v = x.unflatten(-1, (3, heads, d // heads)).permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
        out = F.scaled_dot_product_attention(q, k, v).unflatten(0, x.shape[:2])
        return out.transpose(2, 3).flatten(-2)

    def biased(x: Tensor) -> Tensor:
        return spatial_attention(x, heads, bias=scores)

    def plainly_biased(x: Tensor) -> Tensor:
        q, k, v = x.unflatten(-1, (3, heads, d // heads)).permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=scores.to(x.dtype)).unflatten(0, x.shape[:2])
        return out.transpose(2, 3).flatten(-2)

    def turned(x: Tensor) -> Tensor:
        return rotation_reference(x, table.to(x.dtype), heads, False)

    def rms_norm(x: Tensor) -> Tensor:
        return F.rms_norm(x, (d,), weight.to(x.dtype), 1e-5)

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (d,), weight.to(x.dtype), bias.to(x.dtype))

    def activations(activation: MLPActivation, columns: int, x: Tensor) -> Tensor:
        return torch.cat([activate(x[:, :columns], activation), F.gelu(x[:, columns:])], 1)

    def wide(name: str, activation: Activation) -> Operator:
        plain = partial(activations, activation, split)
        return Operator(name, lambda x: wide_activation(x, split, activation), plain, (b * t * n, hidden), 5)

    def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [torch.randn(*shape, device=device) * shape[-1] ** -0.5 for shape in shapes]

    masters = AdapterWeights(*tensors((d // 4, d), (d // 4,), (d, d // 4), (d,)))
    trunk = tensors((4 * d, d), (4 * d,), (d, 4 * d), (d,))
    gated_trunk = tensors((gated, d), (gated,), (d, gated), (d,), (gated, d), (gated,))

    def trained(x: Tensor) -> AdapterWeights:
        return AdapterWeights(*(weight.to(x.dtype).detach().requires_grad_() for weight in masters))

    def with_adapter(x: Tensor) -> Tensor:
        return adapter(x, trained(x), skip=True, residual=x)

    def plainly_with_adapter(x: Tensor) -> Tensor:
        return x + (x + adapter_reference(x, trained(x)))

    def mlp(name: str, weights: list[Tensor], activation: MLPActivation) -> Operator:
        def call(function: Callable[..., Tensor], x: Tensor) -> Tensor:
            frozen = MLPWeights(*(weight.to(x.dtype) for weight in weights))
            return function(x, frozen, trained(x), None, 0.5, activation)

        return Operator(name, partial(call, wide_mlp), partial(call, wide_mlp_reference), (b, t, n, d), 5)

    gates = partial(activations, "swiglu", 2 * gated)
    return [
        Operator("temporal_attention", lambda x: temporal_attention(x, heads), over_time, (b, t, n, 3 * d), 4),
        Operator("spatial_attention", lambda x: spatial_attention(x, heads), over_space, (b, t, n, 3 * d), 4),
        Operator("spatial_attention, bias", biased, plainly_biased, (b, t, n, 3 * d), 4),
        Operator("rotation", lambda x: rotated(x, Rotation(table), heads), turned, (b, t, n, 3 * d), 4),
        Operator("rms_norm", lambda x: layer_norm(x, weight, None), rms_norm, (b, t, n, d), 5),
        Operator("layer_norm", lambda x: layer_norm(x, weight, bias), norm, (b, t, n, d), 5),
        wide("wide_activation", "quick_gelu"),
        wide("wide_activation gelu_tanh", "gelu_tanh"),
        Operator("wide_swiglu", lambda x: wide_swiglu(x, gated), gates, (b * t * n, 2 * gated + d // 4), 4),
        Operator("adapter", with_adapter, plainly_with_adapter, (b, t, n, d), 5),
        mlp("wide_mlp", trunk, "quick_gelu"),
        mlp("wide_mlp swiglu", gated_trunk, "swiglu"),
    ]


def _stem(model: FrameModel, batch: int, device: str) -> Operator:
    t, d, p, side = model.num_frames, model.embed_dim, model.patch_size, model.img_size
    frames = torch.randint(0, 256, (batch, t, side, side, 3), dtype=torch.uint8, device=device)
    n = 1 + (side // p) ** 2
    weight, first, position = (torch.randn(*size, device=device) for size in ((d, 3, p, p), (d,), (n, d)))
    affine = [torch.rand(d, device=device) + 0.5, torch.randn(d, device=device)]

    def embed(function: Callable[..., Tensor], temporal: Tensor) -> Tensor:
        tensors = (x.to(temporal.dtype) for x in (weight * 0.02, first, position))
        norm = (x.to(temporal.dtype) for x in affine)
        return function(frames, *tensors, temporal, *norm, model.mean, model.std)

    fused, plain = (partial(embed, function) for function in (patch_embed, patch_embed_reference))
    return Operator("patch_embed", fused, plain, (t, d), 7, batch * t * n * d)


def _measured(operator: Operator, device: str, bandwidth: float, rounds: int) -> dict[str, Any]:
    """A row of results; of an operator that does not run, or breaks its error rule, why."""
    try:
        return _timed(operator, device, bandwidth, rounds)
    except Exception as error:  # the other operators are measured all the same
        return {"errors": {}, "failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def _timed(operator: Operator, device: str, bandwidth: float, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(operator.shape, device=device).bfloat16()
    part = x if operator.shape[0] == 1 else x[:64] if x.ndim == 2 else x[:1]
    sides = error_rule.value_and_gradient(operator.fused, operator.plain, part)
    errors = {name: error_rule.errors(*side) for name, side in sides.items()}
    if not all(error_rule.within(*pair) for pair in errors.values()):
        return {"errors": errors, "failed": "the error rule does not hold: no speed"}
    flow = torch.randn_like(operator.plain(x))
    candidates = {
        name: _both_ways(function, x, flow)
        for name, function in (
            *(("fused", operator.fused), ("eager", operator.plain)),
            ("compiled", torch.compile(operator.plain)),
        )
    }
    try:
        candidates["compiled"]()
    except Exception as error:
        print(f"plain {operator.name} does not compile: {str(error).splitlines()[0]}", file=sys.stderr)
        del candidates["compiled"]
    timings = take_turns(candidates, rounds, device, warm=3, ahead=True)
    moved = operator.passes * (operator.elements or x.numel()) * x.element_size()
    plain = [name for name in ("eager", "compiled") if name in timings]
    return {
        "ms": timings["fused"].median * 1e3,
        "spread": timings["fused"].spread,
        "gb_per_s": moved / timings["fused"].median / 1e9,
        "share_of_copy": moved / timings["fused"].median / bandwidth,
        **{f"ratio_vs_{name}": ratio(timings[name], timings["fused"]) for name in plain},
        "errors": errors,
    }


def _both_ways(function: Callable[[Tensor], Tensor], x: Tensor, flow: Tensor) -> Callable[[], None]:
    def call() -> None:
        leaf = x.detach().requires_grad_()
        function(leaf).backward(flow)

    return call


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    worst = f"{max(ours / max(plain, 1e-30) for ours, plain in row['errors'].values()):.2f}" if row["errors"] else ""
    if "failed" in row:
        return ("", "", "", "", "", row["failed"], worst)
    compiled = f"× {row['ratio_vs_compiled']:.2f}" if "ratio_vs_compiled" in row else ""
    return (
        *(f"{row['ms']:.3f}", f"±{row['spread']:.0%}", f"{row['gb_per_s']:.1f}", f"{row['share_of_copy']:.0%}"),
        *(f"× {row['ratio_vs_eager']:.2f}", compiled, worst),
    )
