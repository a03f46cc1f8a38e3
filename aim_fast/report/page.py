"""``report.html``: a run's scores on one page that needs no network and no file beside it.

In: a :class:`~aim_fast.training.report.Report`. Out: one HTML file: headline figures, curves, the confusion matrix, a
table of classes, the most confident mistakes and the hardest classes as the frames that the model saw, calibration,
data faults, recipe, environment and the commands to repeat it. Names are text wherever they stand, whatever is in them.
"""

from __future__ import annotations

import base64
import io
import json
import platform
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined

from aim_fast.files import write_whole
from aim_fast.printable import printable
from aim_fast.report.calibration import Calibration
from aim_fast.report.contact_sheet import contact_sheet
from aim_fast.training.drawing import drawing
from aim_fast.training.evaluation import Evaluation
from aim_fast.training.metrics import METRICS, curves_figure
from aim_fast.training.multi_label_evaluation import MultiLabelEvaluation
from aim_fast.training.report import Report
from aim_fast.training.run_folder import RECIPE, run_folder

__all__ = ["PAGE", "write_page"]

PAGE = "report.html"
_MISTAKES = 12  # most confident ones, with their frames
_HARD_CLASSES, _OF_EACH = 6, 3
_PAIRS = 20  # most frequent confusions
_FAULTS = 50
_PACKAGES = ("aim-fast", "torch", "timm", "open-clip-torch", "triton", "xformers", "av")


@dataclass(frozen=True)
class _Clip:
    """One scored clip on the page, by its number among the scored ones."""

    name: str
    true: str
    predicted: str
    confidence: float
    true_probability: float | None  # of the one class that it has
    sheet: str


def write_page(report: Report, path: Path) -> None:
    """Writes the page, whole; what of its pictures fails is said on stderr and left out."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    template = environment.from_string((files("aim_fast.report") / "page.html").read_text())
    write_whole(path, template.render(_content(report, path)))


def _content(report: Report, path: Path) -> dict[str, Any]:
    classes = [printable(name) for name in report.classes]
    folder = run_folder(report.run)
    calibration = Calibration.of(report.scores)
    faulty = [*report.index.broken, *report.index.missing]
    return {
        "title": printable((folder or report.run).absolute().name),
        "protocol": printable(report.protocol),
        "summary": report.scores.summary(),
        "figures": report.scores.figures,
        "multi_label": report.multi_label,
        "classes": classes,
        "data": json.dumps(_data(report, classes)).replace("<", "\\u003c"),
        "curves": _curves(folder, None if report.multi_label else 1 / len(classes), path) if folder else "",
        "calibration": calibration,
        "reliability": _figure(lambda: _reliability(calibration, report.multi_label), path),
        "pairs": [] if report.multi_label else _confused(report, classes),
        "mistakes": list(_clips(report, classes, _confident_mistakes(report))),
        "hard": [
            (classes[label], score, list(_clips(report, classes, [(number, label) for number in worst])))
            for label, score, worst in _hardest(report)
        ],
        "faults": [(printable(row.path), printable(row.error or "")) for row in faulty[:_FAULTS]],
        "more_faults": max(len(faulty) - _FAULTS, 0),
        "recipe": "\n".join(map(printable, report.recipe.to_yaml().splitlines())),
        "environment": _environment(),
        "commands": [printable(line) for line in _commands(report, folder)],
    }


def _data(report: Report, classes: list[str]) -> dict[str, Any]:
    """What the page's script draws: the confusion matrix by its entries that are not zero [true, predicted, videos], or
    of each class the videos that have it, its average precision, and the videos that it is predicted of."""
    if isinstance(report.scores, MultiLabelEvaluation):
        taken = (report.scores.probabilities >= 0.5).sum(0).tolist()
        table = [[row["videos"], row["ap"], count] for row, count in zip(report.rows(), taken)]
        return {"classes": classes, "table": table}
    confusion = report.scores.confusion
    true, predicted = confusion.nonzero(as_tuple=True)
    entries = torch.stack((true, predicted, confusion[true, predicted]), 1)
    return {"classes": classes, "confusion": entries.tolist()}


def _confused(report: Report, classes: list[str]) -> list[tuple[str, str, int, float]]:
    """(true, predicted, videos, share of the true class) of the most frequent confusions."""
    assert isinstance(report.scores, Evaluation)
    confusion = report.scores.confusion
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    counts, places = wrong.topk(min(_PAIRS, len(wrong)))
    videos = confusion.sum(1).tolist()
    pairs = [(*divmod(place, len(classes)), count) for place, count in zip(places.tolist(), counts.tolist()) if count]
    return [(classes[true], classes[predicted], count, count / videos[true]) for true, predicted, count in pairs]


def _confident_mistakes(report: Report) -> list[tuple[int, int]]:
    """(place among the scores, the most probable class that the clip has not), the most confident first."""
    places = report.mistakes(_MISTAKES)
    wrong = report.scores.probabilities[places].masked_fill(report.has[places], -1).argmax(1)
    return list(zip(places, wrong.tolist()))


def _hardest(report: Report) -> Iterator[tuple[int, float, list[int]]]:
    """(class, score, its clips whose own probability is lowest) of the classes of lowest score that have a mistake."""
    key = "ap" if report.multi_label else "top1"
    values = torch.tensor([2.0 if row[key] is None else row[key] for row in report.rows()], dtype=torch.float64)
    for label in values.argsort(stable=True)[:_HARD_CLASSES].tolist():
        if values[label] < 1:
            members = report.has[:, label].nonzero()[:, 0]
            own = report.scores.probabilities[members, label]
            yield label, values[label].item(), members[own.argsort(stable=True)][:_OF_EACH].tolist()


def _clips(report: Report, classes: list[str], numbers: list[tuple[int, int]]) -> Iterator[_Clip]:
    """Of (number of a clip among the scored ones, a class), with what is predicted of it: the most probable class, or
    where clips may have several labels the one that is given."""
    scores, has = report.scores, report.has
    for number, asked in numbers:
        row = report.index.rows[int(scores.rows[number])]
        probabilities = scores.probabilities[number]
        labels = has[number].nonzero()[:, 0].tolist()
        predicted = asked if report.multi_label else int(probabilities.argmax())
        yield _Clip(
            printable(row.id or Path(row.path).name),
            ", ".join(classes[label] for label in labels) or "no class",
            classes[predicted],
            probabilities[predicted].item(),
            None if report.multi_label else probabilities[labels[0]].item(),
            contact_sheet(row.path, report.sampling, report.img_size),
        )


def _curves(folder: Path, chance: float | None, page: Path) -> str:
    return _figure(lambda: curves_figure(folder, chance), page) if (folder / METRICS).is_file() else ""


def _reliability(calibration: Calibration, multi_label: bool) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color="black", linewidth=1)
    most = max(calibration.videos, default=1)
    sizes = [10 + 90 * count / most for count in calibration.videos]
    axes.plot(calibration.confidence, calibration.top1, color="tab:blue", alpha=0.5)
    axes.scatter(calibration.confidence, calibration.top1, sizes, color="tab:blue")
    names = ("probability", "share that is there") if multi_label else ("confidence", "top-1")
    axes.set(xlabel=names[0], ylabel=names[1], xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return figure


def _figure(draw: Callable[[], Any], page: Path) -> str:
    """A figure as the address of an image; "" where it cannot be drawn, which is said."""
    file = io.BytesIO()
    with drawing(page):
        draw().savefig(file, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode() if file.getvalue() else ""


def _environment() -> list[tuple[str, str]]:
    found = [("python", platform.python_version()), ("system", f"{platform.system()} {platform.machine()}")]
    for name in _PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found.append(("gpu", torch.cuda.get_device_name()))
    return found


def _commands(report: Report, folder: Path | None) -> list[str]:
    """The command lines that train the run again, where its recipe is there, and that score it."""
    if folder is None or not (folder / RECIPE).is_file():
        return [f"aim-fast eval {shlex.quote(str(report.run))}"]
    recipe, again = shlex.quote(str(folder / RECIPE)), shlex.quote(f"{folder}-again")
    return [
        f"aim-fast train --recipe {recipe} --output {again}",
        f"aim-fast eval {shlex.quote(str(folder))} --views {report.recipe.evaluation.views}",
    ]
