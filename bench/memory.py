"""Bytes kept for backward per clip by each memory word, beside the published structure; on a GPU the peak as well.

``python -m bench memory --model aim_vit_l14_clip --frames 32 --batch 4`` answers whether a recipe fits a card.
"""

from __future__ import annotations

import argparse
import gc
import sys
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from aim_fast.models.counting.saved_bytes import saved_bytes
from bench.bars import draw_bars
from bench.step import loss_of, make_sides, peak_mib, training_step


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures and prints: ``saved_mib_per_clip`` and ``share_of_published`` by side, ``peak_mib`` on a GPU."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    name, frames = options.model or "aim_vit_b16_clip", options.frames or 8
    batch = options.batch or (32 if on_gpu else 1)
    sides = make_sides(name, frames, "cpu")
    del sides["published_twin"]
    size = sides["published"].img_size
    clips = torch.randint(0, 256, (batch, frames, size, size, 3), dtype=torch.uint8, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    saved, peak = {}, {}
    for side, held in sides.items():
        model = held.to(device)
        try:
            saved[side] = saved_bytes(model, lambda m=model: loss_of(m, clips[:1], labels[:1], device)) / 2**20
            if on_gpu:
                peak[side] = peak_mib(training_step(model, clips, labels, device))
        except torch.OutOfMemoryError:
            print(f"{side}: out of memory", file=sys.stderr)
        held.to("cpu")
        del model
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
    share = {side: mib / saved["published"] for side, mib in saved.items()} if "published" in saved else {}
    table = Table("side", "saved MiB a clip", "of published", "peak MiB", title=f"memory, {name}, {frames} frames")
    for side, mib in saved.items():
        highest = f"{peak[side]:.0f}" if side in peak else "unmeasured"
        table.add_row(side, f"{mib:.1f}", f"{share[side]:.3f}" if share else "", highest)
    Console().print(table)
    if getattr(options, "out", None):
        draw_bars(saved, f"{name}, {frames} frames: MiB kept for backward per clip", options.out / "memory.png")
    return {
        "model": name,
        "frames": frames,
        "batch": batch,
        "saved_mib_per_clip": saved,
        "share_of_published": share,
        **({"peak_mib": peak} if peak else {}),
    }
