"""An exported model held against its run: on which clips, the largest difference of logits, and equal top-1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from aim_fast.data import Sampling, load_views
from aim_fast.errors import AimFastError, UsageError
from aim_fast.training.clips import open_loader, open_split
from aim_fast.training.devices import Place
from aim_fast.training.progress import RunProgress
from aim_fast.training.trained_model import TrainedModel

CLIPS = 32
# Of logits up to 1, and in proportion above: a hundred times what rounding makes of a B/16.
LIMITS = {"float32": 1e-4, "float16": 2e-2}
_AT_ONCE = 5  # which 32 is no multiple of: batches of two sizes


@dataclass(frozen=True)
class Agreement:
    """``difference``: the largest, NaN for logits that are no numbers; its ``limit``; ``equal`` of ``clips`` top-1."""

    clips: int
    where: str
    difference: float
    limit: float
    equal: int

    @property
    def holds(self) -> bool:
        return self.difference <= self.limit

    def __str__(self) -> str:
        return (
            f"largest difference from the run {self.difference:.2g} (limit {self.limit:.2g}), "
            f"top-1 equal on {self.equal} of {self.clips} clips, {self.where}"
        )


@torch.no_grad()  # an inference tensor that a model keeps could not be traced
def logits_of(model: Callable[[Tensor], Tensor], clips: Tensor, device: torch.device) -> Tensor:
    """float32 [n, classes], on the CPU."""
    return torch.cat([model(batch.to(device)).float().cpu() for batch in clips.split(_AT_ONCE)])


def agreement(found: Tensor, wanted: Tensor, precision: str, where: str) -> Agreement:
    """Of logits [n, classes] with those of the run."""
    difference = float((found - wanted).abs().max())
    limit = LIMITS[precision] * max(1.0, float(wanted.abs().max()))
    return Agreement(len(wanted), where, difference, limit, int((found.argmax(1) == wanted.argmax(1)).sum()))


def clips_for(run: TrainedModel, place: Place, named: Sequence[str]) -> tuple[Tensor, str]:
    """uint8 [n, T, S, S, 3], n up to :data:`CLIPS`, and what they are of.

    Of the videos ``named``, files or folders of them; else of the run's validation split; else, where that is not here,
    of random pixels. Raises DataError for a named video that cannot be read.
    """
    recipe, side = run.recipe, run.model.img_size
    sampling = Sampling(recipe.data.frames, recipe.data.interval or None)
    if named:
        files = _spread([file for name in named for file in _videos(Path(name))])
        clips = [load_views(file, sampling, side, allow_short=True)[0] for file in files]
        return torch.stack(clips), f"of {len(files)} videos named"
    if recipe.data.dataset and recipe.data.data_root and Path(recipe.data.data_root).exists():
        try:
            return _validation_clips(run, place, sampling), f"of {recipe.data.dataset} validation"
        except AimFastError as error:
            reason = f"its data cannot be read: {' '.join(str(error).split())}"
    else:
        reason = "the run's data is not here"
    generator = torch.Generator().manual_seed(0)
    shape = (CLIPS, run.model.num_frames, side, side, 3)
    clips_at_random = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return clips_at_random, f"of random pixels, as {reason} (--clips names videos)"


def _validation_clips(run: TrainedModel, place: Place, sampling: Sampling) -> Tensor:
    quiet = RunProgress(quiet=True)
    recipe = run.recipe.replace(batch_size=_AT_ONCE, accept_gaps=True, cache="none")
    index = open_split(recipe, "validation", place, quiet)
    index = replace(index, rows=[index.rows[number] for number in _spread(index.healthy.tolist())])
    loader = open_loader(recipe, place, index, run.model.img_size, sampling, None, quiet)
    try:
        return torch.cat([batch.frames.cpu()[batch.weights.cpu() > 0] for batch in loader.batches(0)])
    finally:
        loader.close()


def _videos(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not found:
        raise UsageError(f"--clips {path}: holds no files; name videos, or a folder of them")
    return found


def _spread(found: list) -> list:
    """:data:`CLIPS` of them, evenly over all."""
    return [found[i * len(found) // CLIPS] for i in range(CLIPS)] if len(found) > CLIPS else found
