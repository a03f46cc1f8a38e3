"""Which model a set of tensors is of, said once for files, runs and tables."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Identity:
    """``create_model(model, **options)`` makes the model; ``classes`` are those of its logits, in order.

    ``classes`` are empty where nobody has named any. ``trunk_sha256`` of the frozen trunk and ``weights``, where that
    came from, are empty before weights were read (``WeightsReport`` says both).
    """

    model: str
    options: dict[str, Any]
    classes: list[str] = field(default_factory=list)
    trunk_sha256: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        """Names are compared in Unicode's composed form, which saved runs of other systems' folders may not have."""
        object.__setattr__(self, "classes", [unicodedata.normalize("NFC", name) for name in self.classes])
