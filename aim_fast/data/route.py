"""Which decoder takes which clip, and the graph that they feed.

DALI takes what it decodes on this device; PyAV, in threads, takes the other codecs, files whose metadata asks for a
rotation, files whose frames change size, and files that DALI failed on. Both may serve one batch. Without DALI an
evaluation is decoded by PyAV and resized in PyTorch; training says that it needs DALI.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from aim_fast.data.clip_input import ClipInput, GraphError, GraphTooNarrow
from aim_fast.data.index import Index, Row
from aim_fast.data.plan import Augmentation, ClipPlan
from aim_fast.data.resample import EvaluationGraph
from aim_fast.errors import UsageError

if TYPE_CHECKING:
    from aim_fast.data.graph import ClipGraph

__all__ = ["DECODERS", "Router", "dali_available"]

DECODERS = ("auto", "dali", "pyav")


def dali_available() -> bool:
    """Whether DALI is installed here."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


class Router:
    """Decides for each row who decodes it, and owns the graph, made when first needed and made anew after a failure.

    Raises:
        UsageError: training without DALI, or a decoder asked for that cannot take this data.
    """

    def __init__(
        self,
        index: Index,
        *,
        decoder: str,
        device: torch.device,
        batch_size: int,
        img_size: int,
        augmentation: Augmentation | None,
        threads: int,
    ) -> None:
        if decoder not in DECODERS:
            raise UsageError(f"unknown decoder {decoder!r}: known are {', '.join(DECODERS)}")
        self.batch_size, self.img_size, self.augmentation = batch_size, img_size, augmentation
        self.device, self.threads = device, threads
        self._dali = dali_available()
        if not self._dali and (augmentation is not None or decoder == "dali"):
            raise UsageError(
                "training decodes and augments with DALI, which is not installed here: "
                "pip install nvidia-dali-cuda130 (Linux), or use eval and predict, which work without it"
            )
        self._avoided: set[str] = set()
        self._graph: ClipGraph | EvaluationGraph | None = None
        self._decode_on = "cpu"
        self._codecs: frozenset[str] = frozenset()
        if self._dali and decoder != "pyav":
            self._codecs = self._supported(index)
        rows = [index.rows[i] for i in index.healthy]
        self._decoders = frozenset("pyav" if self.takes_pixels(row) else "dali" for row in rows)
        if decoder == "dali" and "pyav" in self._decoders:
            row = next(row for row in rows if self.takes_pixels(row))
            raise UsageError(
                f"DALI does not decode {row.path} here ({row.codec}, {row.pixel_format}): use decoder auto or pyav"
            )
        shares = Counter(("PyAV" if self.takes_pixels(row) else "DALI", row.codec) for row in rows)
        parts = [f"{codec} by {who} ({count})" for (who, codec), count in shares.most_common()]
        self.description = f"decoding {', '.join(parts)}, {threads} threads, DALI's part on the {self._decode_on}"

    def takes_pixels(self, row: Row) -> bool:
        """Whether PyAV decodes this row."""
        native = row.codec in self._codecs and row.rotation == 0 and row.pixel_format != "varying"
        return not native or row.path in self._avoided

    def input(self, row: Row, plan: ClipPlan, pixels: np.ndarray | None) -> ClipInput:
        """The graph's input; GraphTooNarrow where the graph at hand has no place for this decoder's clips."""
        needed = "dali" if pixels is None else "pyav"
        if needed not in self._decoders:
            self._decoders |= {needed}
            raise GraphTooNarrow(f"the graph has no {needed} input")
        return ClipInput(plan, row.path, pixels)

    def run(self, batches: Iterable[Sequence[ClipInput]]) -> Iterator[torch.Tensor]:
        """Frames uint8 [B, T, S, S, 3] of each batch."""
        if self._graph is None:
            self._graph = self._made()
        try:
            yield from self._graph.run(batches)
        except GraphError:
            self._graph = None
            raise

    def avoid(self, path: str) -> None:
        """Have PyAV decode this file from now on."""
        self._avoided.add(path)

    def _made(self) -> ClipGraph | EvaluationGraph:
        if not self._dali:
            return EvaluationGraph(self.img_size, self.device)
        from aim_fast.data.graph import ClipGraph

        return ClipGraph(
            batch_size=self.batch_size,
            img_size=self.img_size,
            augmentation=self.augmentation,
            decoders=self._decoders,
            device=self.device,
            decode_on=self._decode_on,
            threads=self.threads,
        )

    def _supported(self, index: Index) -> frozenset[str]:
        from aim_fast.data.graph import CPU_CODECS

        return CPU_CODECS
