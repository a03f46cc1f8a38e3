"""Scoring a model on the views of a data set's videos.

The scores of a video are the softmax of each view's logits, averaged over its views (Yang et al., ICLR 2023). Top-1 and
top-5 count videos; mean-class accuracy is the average over the classes present of their top-1; the loss is the negative
logarithm of the averaged probability of the right class. Videos that cannot be decoded are left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from aim_fast.data.features.loader import FeatureLoader
from aim_fast.data.loader import ClipLoader
from aim_fast.files import replacing
from aim_fast.models.video_model import VideoModel
from aim_fast.printable import printable


@dataclass(frozen=True)
class Evaluation:
    """Scores of the videos that can be decoded: ``probabilities`` [videos, classes] float32, ``labels`` [videos]."""

    probabilities: Tensor
    labels: Tensor
    excluded: int

    @property
    def videos(self) -> int:
        return len(self.labels)

    @property
    def confusion(self) -> Tensor:
        """Counts [true class, predicted class], int64."""
        classes = self.probabilities.shape[1]
        pairs = self.labels * classes + self.probabilities.argmax(1)
        return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    def top(self, k: int) -> float:
        """Share of videos whose class is among the k most probable."""
        if not self.videos:
            return 0.0
        best = self.probabilities.topk(min(k, self.probabilities.shape[1]), dim=1).indices
        return (best == self.labels[:, None]).any(1).double().mean().item()

    @property
    def class_accuracy(self) -> Tensor:
        """Top-1 of each class [classes], NaN for a class without videos."""
        confusion = self.confusion.double()
        return confusion.diagonal() / confusion.sum(1)

    @property
    def loss(self) -> float:
        right = self.probabilities.double().gather(1, self.labels[:, None]).clamp_min(1e-12)
        return -right.log().mean().item() if self.videos else float("nan")

    def summary(self) -> dict[str, float | int]:
        return {
            "top1": self.top(1),
            "top5": self.top(5),
            "mean_class": self.class_accuracy.nanmean().item() if self.videos else 0.0,
            "loss": self.loss,
            "videos": self.videos,
            "excluded": self.excluded,
        }


@torch.inference_mode()
def evaluate(
    model: VideoModel,
    loader: ClipLoader | FeatureLoader,
    num_classes: int,
    device: torch.device,
    autocast: Callable[[], torch.autocast],
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Scores every (video, view) pair of ``loader``, over all processes, and returns the same result in each of them.

    ``progress``, if given, is called with the number of views scored since its last call.
    """
    training = model.training
    model.eval()
    rows = len(loader.index.rows)
    scores = torch.zeros(rows, num_classes, dtype=torch.float32)
    seen = torch.zeros(rows, dtype=torch.float32)
    labels = torch.zeros(rows, dtype=torch.int64)
    for batch in loader.batches(0):
        with autocast():
            logits = model(batch.frames.to(device, non_blocking=True))
        kept = batch.weights.cpu() > 0
        probabilities = logits.float().softmax(-1).cpu()[kept]
        indices = batch.indices.cpu()[kept]
        scores.index_add_(0, indices, probabilities)
        seen.index_add_(0, indices, torch.ones(len(indices)))
        labels[indices] = batch.labels.cpu()[kept]
        if progress:
            progress(len(batch.labels))
    if dist.is_initialized():
        for tensor in (scores, seen):
            _reduce(tensor, dist.ReduceOp.SUM, device)
        _reduce(labels, dist.ReduceOp.MAX, device)
    model.train(training)
    scored = seen > 0
    excluded = rows - int(scored.sum())
    return Evaluation(scores[scored] / seen[scored, None], labels[scored], excluded)


def _reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType, device: torch.device) -> None:
    shared = tensor.to(device)
    dist.all_reduce(shared, operation)
    tensor.copy_(shared)


def draw_confusion(evaluation: Evaluation, classes: list[str], path: Path) -> None:
    """Draws the confusion matrix, each row divided by its number of videos, as a PNG."""
    from matplotlib.figure import Figure

    confusion = evaluation.confusion.double()
    share = (confusion / confusion.sum(1, keepdim=True).clamp_min(1)).numpy()
    few = len(classes) <= 40
    side = min(4 + 0.3 * len(classes), 16)
    figure = Figure(figsize=(side + (2 if few else 1), side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axes.set(
        xlabel="predicted", ylabel="true", title=f"top-1 {100 * evaluation.top(1):.1f} %, {evaluation.videos} videos"
    )
    if few:
        classes = [printable(name) for name in classes]
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
        axes.set_yticks(range(len(classes)), classes, fontsize=7)
    figure.colorbar(image, ax=axes, label="share of the true class")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", bbox_inches="tight")
