"""The scores of every video as a table: ``video, label, predicted``, and of each class ``score/CLASS``."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from torch import Tensor

from aim_fast.errors import UsageError
from aim_fast.files import replacing, write_whole
from aim_fast.printable import printable
from aim_fast.training.report import Report

__all__ = ["check_predictions", "write_predictions"]

_KINDS = (".csv", ".parquet")


def check_predictions(path: Path) -> None:
    """Raises UsageError for a file that is neither CSV nor Parquet, or for Parquet without pyarrow."""
    if path.suffix not in _KINDS:
        raise UsageError(f"{path}: scores are CSV or Parquet; name a file that ends in {' or '.join(_KINDS)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UsageError(
                f'{path}: Parquet needs pyarrow: pip install "aim-fast[parquet]", or name a .csv file'
            ) from None


def _joined(kept: Tensor, classes: list[str]) -> list[str]:
    """The names of each row's classes, joined as ``--dataset list --multi-label`` reads them."""
    quoted = ['"' + name.replace('"', "'") + '"' if re.search(r'[,;|"]', name) else name for name in classes]
    return [";".join(name for name, has in zip(quoted, row) if has) for row in kept.tolist()]


def write_predictions(report: Report, path: Path) -> None:
    """Writes the videos that were scored, in the order of the annotations; probabilities are float32.

    Where videos may have several labels, ``label`` and ``predicted``, the classes from a half on, are joined by ``;``.
    """
    scores, classes = report.scores, [printable(name) for name in report.classes]
    if report.multi_label:
        label, predicted = (_joined(kept, classes) for kept in (scores.labels > 0, scores.probabilities >= 0.5))
    else:
        label, predicted = ([classes[n] for n in x.tolist()] for x in (scores.labels, scores.probabilities.argmax(1)))
    words = {
        "video": [printable(path) for path in report.videos],
        "label": label,
        "predicted": predicted,
    }
    names = [f"score/{name}" for name in classes]
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [*words.values(), *(pa.array(column) for column in scores.probabilities.T.numpy())]
        with replacing(path) as temporary:
            pq.write_table(pa.table(columns, [*words, *names]), temporary)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*words, *names])
    for row, probabilities in zip(zip(*words.values()), scores.probabilities.numpy()):
        writer.writerow([*row, *(f"{value:.7g}" for value in probabilities)])
    write_whole(path, text.getvalue())
