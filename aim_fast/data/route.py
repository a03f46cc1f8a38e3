"""Which decoder takes which clip, and the graph that they feed.

DALI takes what it decodes on this device; PyAV, in threads, takes the other codecs, files whose metadata asks for a
rotation, files whose frames change size, and files that DALI failed on. Both may serve one batch. Without DALI
evaluation is left to PyAV and PyTorch; training says that it needs DALI.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch

from aim_fast.data.clip_input import ClipInput, GraphError
from aim_fast.data.frame_folder import CODEC as PICTURES
from aim_fast.data.graph import DeviceGraph, Graph, HostGraph
from aim_fast.data.index import Index, Row
from aim_fast.data.plan import Augmentation
from aim_fast.errors import UsageError

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
        self._graph: Graph | None = None
        self._decode_on, self._codecs = "cpu", frozenset[str]()
        remarks: list[str] = []
        if self._dali and decoder != "pyav":
            self._decode_on, self._codecs, remarks = _decoding_of(index, device, threads)
        rows = [index.rows[i] for i in index.healthy]
        if decoder == "dali" and any(self.takes_pixels(row) for row in rows):
            row = next(row for row in rows if self.takes_pixels(row))
            raise UsageError(
                f"DALI does not decode {row.path} here ({row.codec}, {row.pixel_format}): use decoder auto or pyav, or "
                "make VP9 of it by aim-fast transcode"
            )
        shares = Counter(
            (row.codec, _outside(row) if self.takes_pixels(row) else f"DALI on the {self._decode_on}") for row in rows
        )
        parts = [f"{count} {codec} by {who}" for (codec, who), count in shares.most_common()]
        self.description = "; ".join([f"decoding {', '.join(parts)}", f"{threads} threads", *remarks])

    def takes_pixels(self, row: Row) -> bool:
        """Whether PyAV decodes this row."""
        native = row.codec in self._codecs and row.rotation == 0 and row.pixel_format != "varying"
        return not native or row.path in self._avoided

    def run(self, batches: Iterable[Sequence[ClipInput]]) -> Iterator[torch.Tensor]:
        """Frames uint8 [B, T, S, S, 3] of each batch."""
        if self._graph is None:
            self._graph = self._made()
        try:
            for frames in self._graph.run(batches):
                yield frames.to(self.device)
        except GraphError:
            self.close()
            raise

    def avoid(self, path: str) -> None:
        """Have PyAV decode this file from now on."""
        self._avoided.add(path)

    def close(self) -> None:
        """End the graph's threads."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _made(self) -> Graph:
        sizes = {"batch_size": self.batch_size, "img_size": self.img_size, "threads": self.threads}
        if self.device.type != "cuda" or not self._dali:
            return HostGraph(**sizes, augmentation=self.augmentation)
        return DeviceGraph(**sizes, augmentation=self.augmentation, device=self.device, decode_on=self._decode_on)


def _outside(row: Row) -> str:
    """Who decodes what DALI does not."""
    return "Pillow" if row.codec == PICTURES else "PyAV"


def _decoding_of(index: Index, device: torch.device, threads: int) -> tuple[str, frozenset[str], list[str]]:
    """Where DALI decodes, which codecs, and remarks on what it was not trusted with."""
    from aim_fast.data.pipelines import CPU_CODECS

    if device.type != "cuda":
        return "cpu", CPU_CODECS, []
    from aim_fast.data.gpu_decode import trusted_codecs

    number = torch.cuda.current_device() if device.index is None else device.index
    trusted, remarks = trusted_codecs(index, number, threads)
    return ("gpu", trusted, remarks) if trusted else ("cpu", CPU_CODECS, remarks)
