"""Training of a small image Transformer on still objects, for the demo: what CLIP's pre-training is to a real run.

The image model is the same ViT without adapters, on one frame. It learns to say what is in a picture: shape, colour,
place and size of the object; so it knows objects, and nothing of motion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_fast.demo.moving_objects import COLOURS, SHAPES, render_stills
from aim_fast.models.loading import save_trunk
from aim_fast.models.registry import create_model
from aim_fast.models.video_model import VideoModel
from aim_fast.training.devices import Place
from aim_fast.training.steps import step_seed


def train_stills(
    model_name: str,
    path: Path,
    place: Place,
    images: int,
    steps: int,
    batch_size: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Trains the trunk of ``model_name`` on rendered stills into ``path``, and returns its scores on new stills.

    The file is a safetensors state dict under CLIP's names. ``progress`` is called with images seen since its last
    call.
    """
    targets = len(SHAPES) + len(COLOURS) + 3
    torch.manual_seed(seed)
    model = create_model(model_name, num_frames=1, adapters=(), num_classes=targets, head_dropout=0.0)
    model.requires_grad_(True).to(place.device).train()
    pictures, answers = (torch.from_numpy(a) for a in render_stills(images, model.img_size, seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    for step in range(steps):
        warm, along = min(1.0, (step + 1) / (0.08 * steps)), step / steps
        optimizer.param_groups[0]["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * along))
        chosen = torch.randint(images, (batch_size,), generator=torch.Generator().manual_seed(step_seed(seed, step)))
        losses = _losses(model, pictures[chosen], answers[chosen], place)
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        if progress:
            progress(batch_size)
    new, right = (torch.from_numpy(a) for a in render_stills(256, model.img_size, seed + 1))
    scores = _scores(model.eval(), new, right, place)
    save_trunk(model, path)
    return scores


def _answer(model: VideoModel, pictures: Tensor, place: Place) -> tuple[Tensor, ...]:
    """Logits of shape and of colour, and the estimate of x, y and size."""
    with place.autocast():
        out = model(pictures[:, None].to(place.device))
    return out.float().split([len(SHAPES), len(COLOURS), 3], dim=1)


def _losses(model: VideoModel, pictures: Tensor, answers: Tensor, place: Place) -> dict[str, Tensor]:
    shape, colour, where = _answer(model, pictures, place)
    answers = answers.to(place.device)
    return {
        "shape": F.cross_entropy(shape, answers[:, 0].long()),
        "colour": F.cross_entropy(colour, answers[:, 1].long()),
        "where": 3 * F.mse_loss(where, answers[:, 2:]),
    }


@torch.inference_mode()
def _scores(model: VideoModel, pictures: Tensor, answers: Tensor, place: Place) -> dict[str, float]:
    shape, colour, where = (part.cpu() for part in _answer(model, pictures, place))
    return {
        "shape": (shape.argmax(1) == answers[:, 0]).float().mean().item(),
        "colour": (colour.argmax(1) == answers[:, 1]).float().mean().item(),
        "where": 1 - ((where - answers[:, 2:]).square().mean() / answers[:, 2:].var()).item(),
    }
