"""One training step of a whole model: fused, against the published structure, eager and compiled, in one run.

All sides train the same tensors on the same clips: cross-entropy, backward, AdamW. Baselines run under bf16 autocast
from float32 weights, as published code does; ours holds the frozen trunk in bf16 and runs under the same autocast. On a
processor that multiplies bf16 by software alone all run in float32, as ``train`` does there. With ``--precision fp8``
ours multiplies the frozen weights in eight bits, the baselines as ever. Droppath is the recipes'.
Before anything is timed the losses and gradients, without droppath, must agree; if they do not, no speed is printed.

On a GPU the published structure is pinned to the attention backends that torch chooses, and runs again with those that
are the fastest there; each is compiled in its turn; and last, as a failed capture cannot harm what is measured by then,
ours is captured in CUDA graphs, as ``train`` does where that is faster.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from aim_fast.models.counting.flops import count_costs
from aim_fast.models.counting.saved_bytes import saved_bytes
from aim_fast.models.frame_model import FrameModel
from aim_fast.models.methods.aim import AIM
from aim_fast.models.registry import create_model
from aim_fast.timing import Timing, ratio, take_turns
from aim_fast.training.cuda_graph import WARM_UP, GraphedStep
from aim_fast.training.devices import choose_dtype
from aim_fast.tuning.calls import Call, calls_of_step
from aim_fast.tuning.tuning import tune
from aim_kernels import AIMBlock, hold_trunk
from aim_kernels.choices import Memory
from aim_kernels.scaled_rows import EIGHT_BITS
from bench.attention_backends import named, pin, torchs_and_fastest
from bench.bars import draw_bars
from bench.machine_rates import matrix_rate
from bench.published import published

MEMORY = get_args(Memory)
DROP_PATH = AIM.defaults()["drop_path"]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures and prints. Keys, where both sides of a ratio ran:

    ``seconds``, ``spread`` of every side and ``clips_per_s``; ``ratio_vs_published_eager``,
    ``ratio_vs_reference_eager``, ``ratio_vs_published_compiled``; ``saved_mib_per_clip`` {published, fast, balanced,
    lean}; ``speed_of_fast`` by memory word; ``drop_path``; ``failed``, a line on each side that does not run. On a GPU
    ``mfu``, the share of the matrix rate; ``peak_mib`` of every side; ``attention`` {published, published_best: {time,
    space}}, torch's backends that the published sides use; ``ratio_vs_published_best_eager`` and ``.._compiled``,
    with the fastest ones; and ``captured``, our steps in CUDA graphs: ``clips_per_s``, ``mfu`` and the same ratios.
    ``options.save`` is called with what there is before anything is compiled or captured."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    name = options.model or "aim_vit_b16_clip"
    batch, frames = options.batch or (32 if on_gpu else 1), options.frames or 8
    rounds, warm = (12, 3) if on_gpu else (5, 1)
    trunk = EIGHT_BITS if getattr(options, "precision", None) == "fp8" else _dtype(device)
    sides = make_sides(name, frames, device, trunk)
    size = sides["published"].img_size
    clips = torch.randint(0, 256, (batch, frames, size, size, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    kernels = _choose_kernels([sides[word] for word in MEMORY], clips, labels, device) if on_gpu else "none to choose"

    errors = _gradient_errors(sides, clips[:1], labels[:1], device)
    results: dict[str, Any] = {"model": name, "batch": batch, "frames": frames, "gradient_error": errors}
    results["dtype"] = str(trunk).removeprefix("torch.")
    results["kernels"] = kernels
    allowed = 0.2 if trunk == EIGHT_BITS else max(1.25 * errors["published"], 1e-5)
    if not errors["fast"] <= allowed:
        raise RuntimeError(
            f"fused gradients are off by {errors['fast']:.3g}, published ones by {errors['published']:.3g}: "
            "no speed is printed"
        )

    for model in sides.values():
        model.train()
    results["drop_path"] = DROP_PATH
    twin = sides.pop("published_twin")
    if on_gpu:
        chosen, fastest = torchs_and_fastest(sides["published"], clips, _dtype(device))
        results["attention"] = {"published": named(chosen)}
        pin(sides["published"], chosen)  # that it is compiled with what it runs with uncompiled
        if fastest != chosen:
            results["attention"]["published_best"] = named(fastest)
            sides["published_best"] = pin(copy.deepcopy(sides["published"]), fastest)
    steps: dict[str, Callable[[], object]] = {
        side: training_step(model, clips, labels, device) for side, model in sides.items()
    }
    steps["reference"] = training_step(_with_backend(twin, "reference"), clips, labels, device)
    failed = results["failed"] = failing(steps)
    for side in failed.keys() & set(MEMORY):
        raise RuntimeError(f"{side}: {failed[side]}")
    saved = {
        side: saved_bytes(model, lambda m=model: loss_of(m, clips, labels, device))
        for side, model in sides.items()
        if side not in failed
    }
    results["saved_mib_per_clip"] = {side: round(bytes_ / batch / 2**20, 2) for side, bytes_ in saved.items()}
    timings = take_turns(steps, rounds, device, warm - 1)
    fast = timings["fast"]
    results["seconds"] = {side: timing.median for side, timing in timings.items()}
    results["spread"] = {side: timing.spread for side, timing in timings.items()}
    results["clips_per_s"] = batch / fast.median
    results["speed_of_fast"] = {word: ratio(fast, timings[word]) for word in MEMORY}
    baselines = [side for side in ("published", "published_best", "reference") if side in timings]
    results |= {f"ratio_vs_{side}_eager": ratio(timings[side], fast) for side in baselines}
    if on_gpu:
        products = count_costs(name, {"num_frames": frames, "num_classes": 10})[2]
        # two FLOP a multiply-add, forward and the input gradients: a frozen weight has no gradient of its own
        full = 2 * 2 * products * batch / matrix_rate(device)  # seconds at the matrix rate
        results["mfu"] = full / fast.median
        results["peak_mib"] = {
            side: _peak_alone(steps[side], model) for side, model in sides.items() if side not in failed
        }

    def beside_fast(side: str, step: Callable[[], object], times: int) -> dict[str, Timing]:
        """Times one more side in turns with ours, after ``times`` calls; what there was before is safe if it fails."""
        if save := getattr(options, "save", None):
            save(results)
        turns = {side: step}
        failed.update(failing(turns, times))
        if side not in turns:
            return {}
        found = take_turns({"fast": steps["fast"], **turns}, rounds, device)
        timings[side] = found[side]
        results["seconds"][side], results["spread"][side] = found[side].median, found[side].spread
        return found

    if getattr(options, "compiled", True):
        results["compiled"] = how = "whole" if len(getattr(sides["published"], "row", ())) <= 12 else "block by block"
        for side in (side for side in baselines if side != "reference"):
            baseline = training_step(_compiled(sides[side], how), clips, labels, device)
            if found := beside_fast(f"{side}_compiled", baseline, warm):
                results[f"ratio_vs_{side}_compiled"] = ratio(found[f"{side}_compiled"], found["fast"])
    if on_gpu and beside_fast("fast_captured", _captured(sides["fast"], clips, labels, device), WARM_UP + 1):
        ours = timings["fast_captured"].median
        results["captured"] = {"clips_per_s": batch / ours, "mfu": full / ours}
        others = {"eager": baselines, "compiled": [side for side in baselines if f"{side}_compiled" in timings]}
        for how, names in others.items():
            for side in names:
                theirs = results["seconds"][side if how == "eager" else f"{side}_compiled"]
                results["captured"][f"ratio_vs_{side}_{how}"] = theirs / ours
        speeds = results["captured"]["speed_of_fast"] = {"fast": 1.0}
        for word in MEMORY[1:]:
            if beside_fast(f"{word}_captured", _captured(sides[word], clips, labels, device), WARM_UP + 1):
                speeds[word] = ours / timings[f"{word}_captured"].median
    _print(results, timings)
    if getattr(options, "out", None):
        speeds = {side: batch / timing.median for side, timing in timings.items()}
        draw_bars(
            speeds, f"{name}, {frames} frames, batch {batch}: clips/s, one training step", options.out / "step.png"
        )
    return results


def failing(steps: dict[str, Callable[[], object]], times: int = 1) -> dict[str, str]:
    """Runs each step; takes out those that fail, as on a card that is too small, with a line on each."""
    failed = {}
    for side in list(steps):
        try:
            for _ in range(times):
                steps[side]()
        except Exception as error:
            failed[side] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{side} does not run: {failed[side]}", file=sys.stderr)
            del steps[side]
        if side in failed and torch.cuda.is_available():
            torch.cuda.empty_cache()
    return failed


def _compiled(model: FrameModel, how: str) -> nn.Module:
    """A copy, compiled as one, or block by block: alike, they are compiled once, where 24 in one graph take minutes."""
    twin = copy.deepcopy(model)
    if how == "whole":
        return torch.compile(twin)
    for block in twin.row:
        block.compile()
    return twin


def make_sides(name: str, frames: int, device: str, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The model as published, twice, and by each memory word: the same weights in all.

    ``dtype`` is that of the frozen trunk: of the products, the device's where it is not given."""
    torch.manual_seed(0)
    sizes = {"num_frames": frames, "num_classes": 10}
    model = create_model(name, **sizes, head_dropout=0.0, drop_path=DROP_PATH).to(device)
    for parameter_name, parameter in model.named_parameters():
        if "Adapter" in parameter_name:
            nn.init.normal_(parameter, std=0.02)  # fresh adapters add zero, and would hide an error
    sides: dict[str, Any] = {"published": published(model), "published_twin": copy.deepcopy(model)}
    for word in MEMORY:
        sides[word] = copy.deepcopy(model)
        for block in sides[word].modules():
            if isinstance(block, AIMBlock):
                block.memory = word
        hold_trunk(sides[word], dtype or _dtype(device))
    return sides


def _choose_kernels(models: list[nn.Module], clips: Tensor, labels: Tensor, device: str) -> str:
    """As ``train`` does at its first start: measured once, kept by card; a line on what was chosen."""
    counts: Counter[Call] = Counter()
    for model in models:
        counts += calls_of_step(model, lambda x, y, m=model: loss_of(m, x, y, device), [clips, labels])
    tuning = tune(counts, torch.device(device))
    for line in (*tuning.lines, tuning.summary):
        print(line, file=sys.stderr)
    return tuning.summary


def _with_backend(model: nn.Module, backend: str) -> nn.Module:
    for block in model.modules():
        if isinstance(block, AIMBlock):
            block.backend = backend
    return model


def loss_of(model: nn.Module, clips: Tensor, labels: Tensor, device: str, dtype: torch.dtype | None = None) -> Tensor:
    """Cross-entropy, with products in ``dtype``: by default in the precision that ``train`` takes on this device."""
    dtype = dtype or _dtype(device)
    with torch.autocast(device.split(":")[0], dtype, enabled=dtype != torch.float32):
        return F.cross_entropy(model(clips).float(), labels)


def _dtype(device: str) -> torch.dtype:
    return choose_dtype("auto", torch.device(device))


def training_step(
    model: nn.Module, clips: Tensor, labels: Tensor, device: str, dtype: torch.dtype | None = None
) -> Callable[[], None]:
    """A step of AdamW on one batch, to be called again and again."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device.startswith("cuda"))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, clips, labels, device, dtype).backward()
        optimizer.step()

    return step


def _captured(model: FrameModel, clips: Tensor, labels: Tensor, device: str) -> Callable[[], object]:
    """The step of a copy as ``--cuda-graph on`` trains. Raises RuntimeError, with the reason, if it is not captured."""
    twin, said = copy.deepcopy(model), []
    trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([{"params": trained, "lr_factor": 1.0}], lr=1e-5, fused=True)
    step = GraphedStep(lambda x, y: loss_of(twin, x, y, device), optimizer, trained, say=said.append)

    def run() -> None:
        step(clips, labels)
        if said:
            raise RuntimeError(said[-1])

    return run


def _gradient_errors(sides: dict[str, Any], clips: Tensor, labels: Tensor, device: str) -> dict[str, float]:
    """Relative distance of both sides' gradients, all tensors together, from the float32 published structure's."""
    truth = _gradients(sides["published"], clips, labels, device, precise=True)
    found = {side: _gradients(sides[side], clips, labels, device) for side in ("published", "fast")}
    return {side: ((gradient - truth).norm() / truth.norm()).item() for side, gradient in found.items()}


def _gradients(model: nn.Module, clips: Tensor, labels: Tensor, device: str, precise: bool = False) -> Tensor:
    model.eval()  # without droppath
    model.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(clips), labels) if precise else loss_of(model, clips, labels, device)
    loss.backward()
    named = ((name.replace("block.", ""), p.grad) for name, p in model.named_parameters() if p.grad is not None)
    flat = torch.cat([gradient.flatten().float() for _, gradient in sorted(named)])
    model.zero_grad(set_to_none=True)
    return flat


def peak_mib(step: Callable[[], object]) -> float:
    """The most memory that a second call of ``step`` holds on the GPU, with all that is held there already."""
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return round(torch.cuda.max_memory_allocated() / 2**20, 1)


def _peak_alone(step: Callable[[], object], model: nn.Module) -> float:
    """Of one side among others: what its step adds to what lies between steps, and its own weights, gradients and
    AdamW's two moments. MiB."""
    between = torch.cuda.memory_allocated()
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    held += 3 * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return round(peak_mib(step) + (held - between) / 2**20, 1)


def _print(results: dict[str, Any], timings: dict[str, Any]) -> None:
    table = Table(
        "side", "s a step", "spread", "saved MiB a clip", "fast is faster by", title=f"step, {results['model']}"
    )
    for side, timing in timings.items():
        kept = results["saved_mib_per_clip"].get(side)
        faster = f"{ratio(timing, timings['fast']):.2f}"
        table.add_row(
            side, f"{timing.median:.3f}", f"±{timing.spread:.0%}", "" if kept is None else f"{kept:.1f}", faster
        )
    Console().print(table)
    for side, backends in results.get("attention", {}).items():
        print(f"attention of {side}, compiled or not: {', '.join(f'{b} over {what}' for what, b in backends.items())}")
