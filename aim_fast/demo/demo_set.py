"""The demo's data set and trunk: moving objects whose class no single frame tells, and a ViT that knows still ones."""

from __future__ import annotations

from pathlib import Path

from aim_fast.demo.moving_objects import MOTIONS, write_demo_set
from aim_fast.demo.stills import train_stills
from aim_fast.training.devices import Place
from aim_fast.training.progress import RunProgress

DATA, TRUNK = "data", "trunk.safetensors"


def held_out_clips(clips: int) -> int:
    """Clips of the validation split beside ``clips`` of training."""
    return max(clips // 4, len(MOTIONS))


def make_clips(folder: Path, clips: int, seed: int, progress: RunProgress, scene_bias: float = 0.0) -> None:
    """Writes ``folder/data``: a data set in Something-Something v2's layout; ``scene_bias`` as in ``render_clip``."""
    count = progress.counter("clips", clips + held_out_clips(clips))
    write_demo_set(folder / DATA, clips, held_out_clips(clips), seed, progress=count, scene_bias=scene_bias)
    progress.close()


def make_trunk(
    folder: Path, model: str, place: Place, stills: int, steps: int, seed: int, progress: RunProgress
) -> dict[str, float]:
    """Trains ``model``'s trunk on still objects into ``folder/trunk.safetensors``; returns its scores on new ones."""
    count = progress.counter("stills", steps * 64)
    scores = train_stills(model, folder / TRUNK, place, stills, steps, seed=seed, progress=count)
    progress.close()
    return scores
