"""Class probabilities over the time of an untrimmed video: a run's model on sliding windows, as JSON and as a plot."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aim_fast.data.windows import read_windows
from aim_fast.errors import AimFastError, UsageError
from aim_fast.files import replacing, write_whole
from aim_fast.printable import printable
from aim_fast.training.clips import sampling_of
from aim_fast.training.devices import Place, single_place
from aim_fast.training.drawing import drawing
from aim_fast.training.prediction import probabilities
from aim_fast.training.progress import RunProgress
from aim_fast.training.run import open_named_run
from aim_fast.training.trained_model import TrainedModel

_WINDOWS_AT_ONCE = 8


@dataclass(frozen=True)
class Timeline:
    """``windows`` [(start, end)] in seconds and ``probabilities`` [windows, classes] of a video, classes by name."""

    video: str
    classes: list[str]
    windows: list[tuple[float, float]]
    probabilities: torch.Tensor

    def segments(self) -> list[tuple[float, float, str, float]]:
        """(start, end, class, mean probability) of the runs of windows with one most probable class.

        A window stands for the time from the middle between its own centre and the one before to the one after.
        """
        centres = [(start + end) / 2 for start, end in self.windows]
        edges = [self.windows[0][0], *((a + b) / 2 for a, b in itertools.pairwise(centres)), self.windows[-1][1]]
        best = self.probabilities.argmax(1).tolist()
        rows, first = [], 0
        for index in range(1, len(best) + 1):
            if index == len(best) or best[index] != best[first]:
                share = self.probabilities[first:index, best[first]].mean().item()
                rows.append((edges[first], edges[index], self.classes[best[first]], share))
                first = index
        return rows

    def to_json(self) -> str:
        content = {
            "video": self.video,
            "classes": self.classes,
            "windows": [
                {"start": round(start, 4), "end": round(end, 4), "probabilities": [round(p, 6) for p in row]}
                for (start, end), row in zip(self.windows, self.probabilities.tolist())
            ],
            "segments": [
                {"start": round(start, 4), "end": round(end, 4), "label": label, "probability": round(share, 6)}
                for start, end, label, share in self.segments()
            ],
        }
        return json.dumps(content, indent=1)

    def draw(self, path: Path, top_k: int = 5) -> None:
        """A PNG of the probabilities over time of the classes that are most probable anywhere."""
        from matplotlib.figure import Figure

        shown = self.probabilities.amax(0).topk(min(top_k, len(self.classes))).indices.tolist()
        centres = [(start + end) / 2 for start, end in self.windows]
        figure = Figure(figsize=(10, 4), layout="constrained")
        axes = figure.subplots()
        for index in shown:
            axes.plot(centres, self.probabilities[:, index], "o-", markersize=3, label=printable(self.classes[index]))
        axes.set(xlabel="time, seconds (centre of the window)", ylabel="probability", ylim=(-0.02, 1.02))
        axes.set_xlim(self.windows[0][0], self.windows[-1][1])
        axes.set_title(printable(Path(self.video).name))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=8)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")


def write_timelines(
    path: str,
    videos: list[str],
    folder: Path,
    top_k: int,
    seconds: float | None,
    stride: float | None,
    fields: dict[str, Any],
) -> Iterator[Timeline | dict[str, str]]:
    """For each video in order its timeline, with ``NAME.json`` and ``NAME.png`` written to ``folder``, or
    ``{"video", "error"}`` with the reason, one line, why it cannot be read."""
    names = [Path(video).name for video in videos]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"two videos are named {twice[0]}: their timelines would overwrite each other in {folder}; "
            "predict them apart, or rename one"
        )
    place = single_place(fields.get("device", "auto"), fields.get("precision", "auto"))
    run = open_named_run(path, fields, place)
    for line in run.lines:
        RunProgress().say(line)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--timeline {folder}: cannot be made ({error.strerror}); give another folder") from None
    for video, name in zip(videos, names):
        try:
            timeline = _timeline(run, place, video, seconds, stride)
        except UsageError:
            raise
        except AimFastError as error:
            yield {"video": video, "error": " ".join(str(error).split())}
            continue
        write_whole(folder / f"{name}.json", timeline.to_json())
        with drawing(folder / f"{name}.png"):
            timeline.draw(folder / f"{name}.png", top_k)
        yield timeline


def _timeline(run: TrainedModel, place: Place, video: str, seconds: float | None, stride: float | None) -> Timeline:
    windows = read_windows(video, sampling_of(run.recipe), run.model.img_size, seconds=seconds, stride=stride)
    times, rows = [], []
    while batch := list(itertools.islice(windows, _WINDOWS_AT_ONCE)):
        times += [(window.start, window.end) for window in batch]
        rows.append(probabilities(run, place, torch.stack([window.frames for window in batch])).cpu())
    return Timeline(video, run.classes, times, torch.cat(rows))
