"""What a run writes about itself: ``metrics.jsonl`` (one object a line), its trackers' lines and ``curves.png``.

Lines have a ``kind``: "train" (``epoch, step, loss, lr, clips_per_s, data_wait``), "eval" (``epoch, step, top1,
top5, loss, mean_class``, or ``map, loss`` where clips may have several labels) and "data" (``broken``, ``replaced``,
``missing``, ... counts of clips; ``peak_memory`` bytes at the highest point so far, of the allocator on a GPU, of the
process on a CPU). ``data_wait`` is the share of the
time, 0 to 1, that training waited for frames.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_fast.errors import CheckpointError
from aim_fast.files import replacing, write_whole
from aim_fast.training.trackers import Tracker, open_trackers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = "metrics.jsonl"
CURVES = "curves.png"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics; a last line cut short by a kill is left out."""
    path = folder / METRICS
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


class MetricsLog:
    """Appends to a run's metrics and to its trackers, which ``trackers`` opens: TensorBoard alone where it is None.

    ``resume_step``: lines of later steps are dropped first, and where ``validated`` is false what followed the training
    of that step too.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int | None = None,
        validated: bool = True,
        trackers: Callable[[], list[Tracker]] | None = None,
    ) -> None:
        self.folder = folder
        try:
            rows = read_metrics(folder) if resume_step is not None else []
            kept = [row for row in rows if row.get("step", 0) <= (resume_step or 0)]
            if not validated:
                kept = [row for row in kept if row["kind"] == "train" or row["step"] != resume_step]
            write_whole(folder / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
            self._file = open(folder / METRICS, "a", buffering=1)  # noqa: SIM115 - open for the run's life
            self._trackers = trackers() if trackers else open_trackers(("tensorboard",), folder, resume_step, {}, print)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be written ({error.strerror}); give another --output") from None

    def write(self, kind: str, step: int, **values: Any) -> None:
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            shown = {f"{kind}/{name}": value for name, value in values.items() if name != "epoch"}
            for tracker in self._trackers:
                tracker.log(step, {name: value for name, value in shown.items() if isinstance(value, (int, float))})
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: metrics not written ({error.strerror}); make room, then --resume"
            ) from None

    def close(self) -> None:
        """Ends the file and the trackers; what a full disk does not take any more of the events is dropped."""
        for close in (self._file.close, *(tracker.close for tracker in self._trackers)):
            with contextlib.suppress(OSError):
                close()


def draw_curves(folder: Path, chance: float | None = None) -> Path:
    """Draws ``curves.png`` from a run's metrics, see :func:`curves_figure`."""
    path = folder / CURVES
    figure = curves_figure(folder, chance)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path


def curves_figure(folder: Path, chance: float | None = None) -> Figure:
    """Training and validation loss by step, validation top-1 and top-5 by epoch, of a run's metrics."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    train = [row for row in rows if row["kind"] == "train"]
    evaluated = [row for row in rows if row["kind"] == "eval"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, losses = [row["step"] for row in train], [row["loss"] for row in train]
    left.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1)
    left.plot(steps, _smooth(losses), color="tab:blue", label="training loss")
    if evaluated:
        left.plot([row["step"] for row in evaluated], [row["loss"] for row in evaluated], "o-", color="tab:orange",
                  markersize=3, label="validation loss")  # fmt: skip
        named = {"top1": ("top-1", "tab:green"), "top5": ("top-5", "tab:gray"), "map": ("mAP", "tab:green")}
        for key, (name, color) in ((key, named[key]) for key in named if key in evaluated[0]):
            right.plot([row["epoch"] for row in evaluated], [row[key] for row in evaluated], "o-", color=color,
                       markersize=3, label=f"validation {name}")  # fmt: skip
    if chance is not None:
        right.axhline(chance, color="black", linestyle=":", linewidth=1, label="chance")
    left.set(xlabel="step", ylabel="loss")
    right.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize=8)
    return figure


def _smooth(values: list[float], keep: float = 0.9) -> list[float]:
    smooth: list[float] = []
    for value in values:
        smooth.append(value if not smooth else keep * smooth[-1] + (1 - keep) * value)
    return smooth
