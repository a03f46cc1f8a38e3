"""Scoring a model on the views of a data set's videos.

The scores of a video are the softmax of each view's logits, averaged over its views (Yang et al., ICLR 2023). Top-1 and
top-5 count videos; mean-class accuracy is the average over the classes present of their top-1; the loss is the negative
logarithm of the averaged probability of the right class. Videos that cannot be decoded are left out and counted.
Where a video may have several labels its scores are the sigmoid instead, see ``multi_label_evaluation``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from aim_fast.data.features.loader import FeatureLoader
from aim_fast.data.loader import ClipLoader
from aim_fast.files import replacing
from aim_fast.models.video_model import VideoModel
from aim_fast.printable import printable
from aim_fast.training.multi_label_evaluation import MultiLabelEvaluation


@dataclass(frozen=True)
class Evaluation:
    """Scores of the videos that can be decoded: ``probabilities`` [videos, classes] float32, ``labels`` [videos].

    ``rows`` [videos] are their numbers in the index; ``excluded`` counts those that cannot be decoded.
    """

    probabilities: Tensor
    labels: Tensor
    rows: Tensor
    excluded: int

    metric: ClassVar[str] = "top1"  # which figure picks the best

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

    @property
    def figures(self) -> dict[str, float | int]:
        """Those of the summary that are shares, by what a reader calls them."""
        summary = self.summary()
        return {"top-1": summary["top1"], "top-5": summary["top5"], "mean class": summary["mean_class"]}

    @property
    def headline(self) -> str:
        """The first two of them, for a line."""
        return f"top-1 {100 * self.top(1):.1f} %, top-5 {100 * self.top(5):.1f} %"

    def class_rows(self, classes: list[str]) -> list[dict[str, Any]]:
        """One row a class: name, videos, top-1 (None without videos)."""
        counts, accuracy = self.confusion.sum(1).tolist(), self.class_accuracy.tolist()
        return [
            {"class": name, "videos": count, "top1": value if count else None}
            for name, count, value in zip(classes, counts, accuracy)
        ]


@torch.inference_mode()
def evaluate(
    model: VideoModel,
    loader: ClipLoader | FeatureLoader,
    num_classes: int,
    device: torch.device,
    autocast: Callable[[], torch.autocast],
    progress: Callable[[int], None] | None = None,
) -> Evaluation | MultiLabelEvaluation:
    """Scores every (video, view) pair of ``loader``, over all processes, and returns the same result in each of them.

    ``progress``, if given, is called with the number of views scored since its last call.
    """
    training = model.training
    model.eval()
    rows, multi_label = len(loader.index.rows), loader.index.multi_label
    scores = torch.zeros(rows, num_classes, dtype=torch.float32)
    seen = torch.zeros(rows, dtype=torch.float32)
    labels = torch.zeros((rows, num_classes) if multi_label else rows, dtype=torch.int64)
    for batch in loader.batches(0):
        with autocast():
            logits = model(batch.frames.to(device, non_blocking=True))
        kept = batch.weights.cpu() > 0
        probabilities = class_probabilities(logits, multi_label).cpu()[kept]
        indices = batch.indices.cpu()[kept]
        scores.index_add_(0, indices, probabilities)
        seen.index_add_(0, indices, torch.ones(len(indices)))
        labels[indices] = batch.labels.cpu()[kept].long()
        if progress:
            progress(len(batch.labels))
    if dist.is_initialized():
        for tensor in (scores, seen):
            _reduce(tensor, dist.ReduceOp.SUM, device)
        _reduce(labels, dist.ReduceOp.MAX, device)
    model.train(training)
    scored = seen > 0
    excluded = rows - int(scored.sum())
    kind = MultiLabelEvaluation if multi_label else Evaluation
    return kind(scores[scored] / seen[scored, None], labels[scored], scored.nonzero()[:, 0], excluded)


def class_probabilities(logits: Tensor, multi_label: bool) -> Tensor:
    """float32 [..., classes]: the softmax of logits, or where each class is told on its own the sigmoid."""
    return logits.float().sigmoid() if multi_label else logits.float().softmax(-1)


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
