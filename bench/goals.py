"""Every goal of the engine, and whether what was measured reaches it: reached, missed or unmeasured.

``python -m bench`` ends with this table, and so does ``pytest tests/gpu``, from the figures of this run and from those
kept in bench/results/. A goal counts only figures of its own device, model, frames, batch and precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

RESULTS = Path(__file__).parent / "results"
Figure = Callable[[Mapping[str, Any]], float | None]
B16, L14 = "aim_vit_b16_clip", "aim_vit_l14_clip"


class Goal(NamedTuple):
    """``figure`` of the results of program ``bench``, or of one of several, on ``device`` must be at least (or at most)
    ``limit``."""

    text: str
    device: str
    bench: str | tuple[str, ...]
    setting: Mapping[str, Any]  # what the results must say of model, frames and batch, and of dtype where it is fp8's
    figure: Figure
    limit: float
    at_least: bool = True
    card: str = ""  # of the GPU's name, where the goal is of one

    def status(self, value: float | None) -> str:
        if value is None:
            return "unmeasured"
        return "reached" if (value >= self.limit if self.at_least else value <= self.limit) else "missed"


def of(*path: str) -> Figure:
    """The number at a path of keys, None where there is none."""

    def find(results: Any) -> float | None:
        for key in path:
            if not isinstance(results, Mapping) or key not in results:
                return None
            results = results[key]
        return results

    return find


def better(*path: str) -> Figure:
    """Of two ways to run a step, as it is and captured in CUDA graphs, the greater figure: training takes it."""

    def find(results: Mapping[str, Any]) -> float | None:
        found = [value for value in (of(*path)(results), of("captured", *path)(results)) if value is not None]
        return max(found, default=None)

    return find


def operator(name: str, figure: str) -> Figure:
    """A figure of one operator; 0 where it failed its error rule and so has no speed."""

    def find(results: Mapping[str, Any]) -> float | None:
        row = results["operators"].get(name)
        return None if row is None else 0.0 if "failed" in row else row[figure]

    return find


def slowest_operator(results: Mapping[str, Any]) -> float | None:
    """Of all operators, the least ratio to the compiled plain expression; 0 where one failed, None where a plain
    expression does not compile."""
    rows = results["operators"].values()
    ratios = [0.0 if "failed" in row else row.get("ratio_vs_compiled") for row in rows]
    return None if None in ratios else min(ratios)


def share_kept(memory: str) -> Figure:
    """Bytes kept for backward by a memory word, as a share of the published structure's."""

    def find(results: Mapping[str, Any]) -> float | None:
        kept = results["saved_mib_per_clip"]
        return kept[memory] / kept["published"] if "published" in kept else None

    return find


def peak_gb(memory: str) -> Figure:
    def find(results: Mapping[str, Any]) -> float | None:
        mib = results.get("peak_mib", {}).get(memory)
        return None if mib is None else mib * 2**20 / 1e9

    return find


def relative_gradient_error(results: Mapping[str, Any]) -> float | None:
    errors = results.get("gradient_error")  # which nothing predicts
    return None if errors is None else errors["fast"] / errors["published"]


def _goals() -> list[Goal]:
    peaks = ("memory", "step")  # programs that measure them
    cpu, gpu = {"model": B16, "frames": 8, "batch": 1}, {"model": B16, "frames": 8, "batch": (32, 64)}
    large, long = {"model": L14, "frames": 8}, {"model": L14, "frames": 32, "batch": 4}
    eager, compiled, best_eager, best_compiled = (
        better(f"ratio_vs_published_{how}") for how in ("eager", "compiled", "best_eager", "best_compiled")
    )
    return [
        Goal("B/16 step, times faster than published eager", "cpu", "step", cpu, eager, 1.3),
        Goal("B/16 step, stretch", "cpu", "step", cpu, eager, 1.5),
        Goal(
            "spatial attention over torch's",
            "cpu",
            "kernels",
            cpu,
            operator("spatial_attention", "ratio_vs_eager"),
            2.5,
        ),
        Goal(
            "temporal attention over torch's",
            "cpu",
            "kernels",
            cpu,
            operator("temporal_attention", "ratio_vs_eager"),
            2.5,
        ),
        Goal("bytes kept, fast, of published", "cpu", "step", cpu, share_kept("fast"), 1 / 2, False),
        Goal("bytes kept, balanced, of published", "cpu", "step", cpu, share_kept("balanced"), 1 / 4, False),
        Goal("bytes kept, lean, of published", "cpu", "step", cpu, share_kept("lean"), 1 / 12, False),
        Goal("gradient error, of published", "cpu", "step", cpu, relative_gradient_error, 1.25, False),
        Goal("B/16 step over published eager", "cuda", "step", gpu, eager, 2.8),
        Goal("B/16 step over published compiled", "cuda", "step", gpu, compiled, 2.0),
        Goal("the same, with torch's fastest attention, eager", "cuda", "step", gpu, best_eager, 2.8),
        Goal("the same, with torch's fastest attention, compiled", "cuda", "step", gpu, best_compiled, 2.0),
        Goal("B/16 share of the matrix rate", "cuda", "step", gpu, better("mfu"), 0.5),
        *(
            Goal(f"{text} clips/s", "cuda", "step", setting, better("clips_per_s"), limit, card=card)
            for text, setting, *limits in (
                ("B/16", {**gpu, "batch": 32}, 490, 530),
                ("B/16, fp8,", {**gpu, "batch": 32, "dtype": "float8_e4m3fn"}, 590, 650),
                ("L/14", large, 115, 130),
            )
            for card, limit in zip(("H100", "H200"), limits, strict=True)
        ),
        Goal("gradient error, of published", "cuda", "step", gpu, relative_gradient_error, 1.25, False),
        Goal("L/14 step over published eager", "cuda", "step", large, eager, 2.5),
        Goal("L/14 step over published compiled", "cuda", "step", large, compiled, 1.5),
        Goal("peak GB, fast, batch 32", "cuda", peaks, {**gpu, "batch": 32}, peak_gb("fast"), 16, False),
        Goal("peak GB, balanced, batch 32", "cuda", peaks, {**gpu, "batch": 32}, peak_gb("balanced"), 8, False),
        Goal("peak GB, lean, batch 32", "cuda", peaks, {**gpu, "batch": 32}, peak_gb("lean"), 3, False),
        Goal("peak GB, L/14, 32 frames, lean, batch 4", "cuda", peaks, long, peak_gb("lean"), 6, False),
        Goal("speed of balanced, of fast", "cuda", "step", gpu, better("speed_of_fast", "balanced"), 0.75),
        Goal("speed of lean, of fast", "cuda", "step", gpu, better("speed_of_fast", "lean"), 0.62),
        Goal(
            "temporal attention, of the copy rate",
            "cuda",
            "kernels",
            gpu,
            operator("temporal_attention", "share_of_copy"),
            0.8,
        ),
        Goal("layer norm, of the copy rate", "cuda", "kernels", gpu, operator("layer_norm", "share_of_copy"), 0.8),
        Goal("slowest operator over its compiled expression", "cuda", "kernels", gpu, slowest_operator, 1.0),
    ]


def judge(measured: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a goal: goal, device, wanted, figure, status and date, of what is measured; ``predicted`` apart, of a
    roofline's results (:mod:`bench.roofline`), and for which GPU. Earlier results in ``measured`` come first."""
    given, rows = list(measured), []
    measured = [results for results in given if results["bench"] != "roofline"]
    predictions = [results for results in given if results["bench"] == "roofline"]
    for goal in _goals():
        value, date = None, ""
        for results in measured:
            if value is None and _serves(results, goal):
                value = goal.figure(results)
                date = "" if value is None else results["date"][:10]
        sign = "≥" if goal.at_least else "≤"
        wanted = f"{sign} {goal.limit:.3g}"
        row = {"goal": goal.text, "device": goal.card or goal.device, "wanted": wanted, "figure": value}
        rows.append({**row, "status": goal.status(value), "date": date, **_prediction(goal, predictions)})
    return rows


def _prediction(goal: Goal, predictions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """``predicted`` and ``predicted_for`` of a goal on a GPU; neither where nothing predicts it."""
    for results in predictions:
        predicts = goal.device == "cuda" and "step" in goal.bench and _fits(results, goal)
        if predicts and (value := goal.figure(results)) is not None:
            return {"predicted": value, "predicted_for": results["predicted_for"]}
    return {}


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The results of single programs in ``folder`` and below, newest first."""
    found = [json.loads(file.read_text()) for file in sorted(folder.rglob("*.json"))]
    return sorted((r for r in found if isinstance(r, dict) and "bench" in r), key=lambda r: r["date"], reverse=True)


def table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """The rows of :func:`judge`, to print."""
    printed = Table("goal", "device", "wanted", "figure", "status", "measured", "predicted", title="goals")
    for row in rows:
        figure = "" if row["figure"] is None else f"{row['figure']:.3g}"
        predicted = f"{row['predicted']:.3g} on {row['predicted_for']}" if "predicted" in row else ""
        printed.add_row(row["goal"], row["device"], row["wanted"], figure, row["status"], row["date"], predicted)
    return printed


def _serves(results: Mapping[str, Any], goal: Goal) -> bool:
    programs = (goal.bench,) if isinstance(goal.bench, str) else goal.bench
    if results["bench"] not in programs or not results["device"].startswith(goal.device):
        return False
    return _fits(results, goal)


def _fits(results: Mapping[str, Any], goal: Goal) -> bool:
    """Whether model, frames, batch, precision and GPU are the goal's."""
    if "dtype" not in goal.setting and results.get("dtype") in ("float32", "float8_e4m3fn"):
        return False
    if goal.card not in results.get("predicted_for", results.get("device_name", "")):
        return False
    wanted = goal.setting.items()
    return all(results.get(k) in v if isinstance(v, tuple) else results.get(k) == v for k, v in wanted)
