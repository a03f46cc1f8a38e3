"""What a weights file gives a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from aim_kernels.choices import Activation


@dataclass(frozen=True)
class Fit:
    """What a weights file gives a model: ``tensors`` under the model's names and in its shapes.

    ``left``: names of the model that stay at their initialisation, all others must be in ``tensors``; ``kind`` "clip",
    "timm" or "aim" (a whole adapted model); ``lines`` for a reader, one sentence each: what was interpolated, is left
    at its initialisation, or is not known; ``activation`` to be set on the model, where the file tells it;
    ``tokenizer``: where that of a text tower is, a folder or "hub".
    """

    tensors: dict[str, Tensor]
    left: set[str]
    kind: str
    lines: list[str] = field(default_factory=list)
    activation: Activation | None = None
    tokenizer: str = ""
