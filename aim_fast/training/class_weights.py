"""Weights of classes in the loss: balanced by how many clips they have, or a file's."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from aim_fast.data import Index
from aim_fast.data.formats.annotation import class_name, numbered_lines, unquoted
from aim_fast.errors import DataError, UsageError, nearest
from aim_fast.training.recipe_groups import BALANCED


def class_weights(asked: str | None, index: Index) -> Tensor | None:
    """float32 [classes]: ``balanced`` weights of a training split, or those of a file; None where none are asked for.

    With one label a clip a clip's loss is multiplied by the weight of its class, balanced n / (C·n_c), whose mean over
    the clips is 1 (King and Zeng, 2001; scikit-learn's ``class_weight="balanced"``). With several a class's weight is
    on the clips that have it, balanced (n − n_c) / n_c, as torch says of ``pos_weight``. A class without a clip has 1.
    """
    if asked is None:
        return None
    if asked != BALANCED:
        return _read(Path(asked), index.classes)
    counts = torch.tensor([len(rows) for rows in index.members], dtype=torch.float64)
    clips = len(index.healthy)
    found = (clips - counts) / counts if index.multi_label else clips / (counts.count_nonzero() * counts)
    return found.where(counts > 0, 1.0).float()


def _read(file: Path, classes: list[str]) -> Tensor:
    """The weights of lines ``CLASS WEIGHT``, or ``CLASS,WEIGHT``; every class once."""
    found: dict[str, float] = {}
    try:
        lines = list(numbered_lines(file))
    except DataError as error:
        raise UsageError(f"class weights {error}") from None
    for number, line in lines:
        match = re.fullmatch(r"(?P<name>.*\S)(?:\s*[,;\t|]\s*|\s+)(?P<weight>\S+)", line)
        name = class_name(unquoted(match["name"])) if match else line
        try:
            weight = float(match["weight"]) if match else math.nan
        except ValueError:
            weight = math.nan
        if number == lines[0][0] and name not in classes and math.isnan(weight):
            continue  # a heading
        if name not in classes:
            raise UsageError(f"{file}: line {number}: {name!r} is no class of the data set; {nearest(name, classes)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"{file}: line {number} is not 'CLASS WEIGHT', a number from 0 on: {line[:60]!r}")
        if name in found:
            raise UsageError(f"{file}: line {number} weighs {name!r} again; keep one of them")
        found[name] = weight
    if lacking := [name for name in classes if name not in found]:
        raise UsageError(f"{file}: weighs {len(found)} of {len(classes)} classes, not {lacking[0]!r}; add the others")
    if not any(found.values()):
        raise UsageError(f"{file}: every weight is 0, which leaves nothing to learn")
    return torch.tensor([found[name] for name in classes])
