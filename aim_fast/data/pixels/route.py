"""Which decoder takes which clip, and the pipeline that they feed.

DALI takes what it decodes on this device; PyAV, in threads, takes the other codecs, files that are not plain (turned,
of changing size, or special as the index says), clips whose frames are too large to be held whole, and files that DALI
failed on. Both may serve one batch. Without DALI
evaluation is left to PyAV and PyTorch; training says that it needs DALI.

The routes, each with PyAV for what it leaves: ``gpu``, DALI on the GPU's video engine; ``shared``, half of those files
there and half by PyAV on the cores at the same time; ``cpu``, DALI on the cores; ``pyav``, PyAV alone. ``auto`` is the
first of them that is possible, ``dali`` the same without PyAV. On a CPU they all give the same bits.
"""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import torch

from aim_fast.data.choices import Decoder
from aim_fast.data.index.rows import Index, Row
from aim_fast.data.pixels.batch_pipeline import UNDER_WAY, BatchPipeline, DevicePipeline, HostPipeline
from aim_fast.data.pixels.clip_input import ClipInput, PipelineError
from aim_fast.data.pixels.timm_policy import check_policy
from aim_fast.data.plan.augmentation import Augmentation
from aim_fast.data.video.frame_folder import CODEC as PICTURES
from aim_fast.errors import UsageError

__all__ = ["DECODERS", "Router", "dali_available", "routes"]

DECODERS = (*get_args(Decoder), "cpu", "gpu", "shared")
_LARGE_CLIP = 64 * 2**20  # bytes of whole frames: more than 1080p at ten
_WHOLE_CLIPS = 2**30  # bytes of whole frames that batches under way may hold


def dali_available() -> bool:
    """Whether DALI is installed here."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def routes(index: Index, device: torch.device, threads: int) -> list[str]:
    """The routes that differ for these files on this device and give the right frames; the first is auto's."""
    rows = [index.rows[i] for i in index.healthy]
    if not dali_available():
        return ["pyav"]
    from aim_fast.data.pixels.dali_pipelines import CPU_CODECS

    found = []
    if device.type == "cuda":
        from aim_fast.data.pixels.gpu_decode import trusted_kinds

        if trusted_kinds(index, _number(device), threads)[0]:
            found += ["gpu", "shared"]
    if any(row.codec in CPU_CODECS and row.plain for row in rows):
        found.append("cpu")
    return [*found, "pyav"]


class Router:
    """Decides for each row who decodes it, and owns the pipeline, made when first needed and made anew after a failure.

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
        num_frames: int = 0,
    ) -> None:
        if decoder not in DECODERS:
            raise UsageError(f"unknown decoder {decoder!r}: known are {', '.join(DECODERS)}")
        self.batch_size, self.img_size, self.augmentation = batch_size, img_size, augmentation
        self.device, self.threads, self.num_frames = device, threads, num_frames
        self._dali = dali_available()
        if not self._dali and (augmentation is not None or decoder == "dali"):
            raise UsageError(
                "training decodes and augments with DALI, which is not installed here: "
                "pip install nvidia-dali-cuda130 (Linux), or use eval and predict, which work without it"
            )
        self.avoided: set[str] = set()
        self._pipeline: BatchPipeline | None = None
        if decoder in ("gpu", "shared") and device.type != "cuda":
            raise UsageError(f"decoder {decoder} decodes on a GPU, and the clips go to {device}: use auto")
        self._half = decoder == "shared"
        self._decode_on, self._kinds = "cpu", frozenset[tuple[str, str]]()
        remarks: list[str] = []
        # timm's policies work on Pillow's images, so everything before them is on the host
        self._on_host = device.type != "cuda" or not self._dali or bool(augmentation and augmentation.policy)
        if augmentation and augmentation.policy:
            check_policy(augmentation.policy)
        if self._dali and decoder != "pyav":
            where = "cpu" if self._on_host else decoder
            self._decode_on, self._kinds, remarks = decoding_of(index, device, threads, where)
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
        native = (row.codec, row.pixel_format) in self._kinds and row.plain and not self._overflows(row)
        return not native or row.path in self.avoided or (self._half and _in_second_half(row))

    def _overflows(self, row: Row) -> bool:
        """Whether batches of such clips, which DALI holds whole on the host, would take too much memory."""
        clip = self.num_frames * row.height * row.width * 3
        return self._decode_on == "cpu" and clip > _LARGE_CLIP and UNDER_WAY * self.batch_size * clip > _WHOLE_CLIPS

    def run(self, batches: Iterable[Sequence[ClipInput]]) -> Iterator[torch.Tensor]:
        """Frames uint8 [B, T, S, S, 3] of each batch."""
        if self._pipeline is None:
            self._pipeline = self._made()
        try:
            for frames in self._pipeline.run(batches):
                yield frames.to(self.device)
        except PipelineError:
            self.close()
            raise

    def avoid(self, path: str) -> None:
        """Have PyAV decode this file from now on."""
        self.avoided.add(path)

    def close(self) -> None:
        """End the pipeline's threads."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def _made(self) -> BatchPipeline:
        sizes = {"batch_size": self.batch_size, "img_size": self.img_size, "threads": self.threads}
        if self._on_host:
            return HostPipeline(**sizes, augmentation=self.augmentation)
        return DevicePipeline(**sizes, augmentation=self.augmentation, device=self.device, decode_on=self._decode_on)


def _outside(row: Row) -> str:
    """Who decodes what DALI does not."""
    return "Pillow" if row.codec == PICTURES else "PyAV"


def _in_second_half(row: Row) -> bool:
    """A halving of the files by their names, the same in every run and process."""
    return zlib.crc32(os.fsencode(os.path.basename(row.path))) % 2 == 1


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def decoding_of(
    index: Index, device: torch.device, threads: int, decoder: str
) -> tuple[str, frozenset[tuple[str, str]], list[str]]:
    """Where DALI decodes, which (codec, pixel format) it takes, and remarks on what it was not trusted with."""
    from aim_fast.data.pixels.dali_pipelines import CPU_CODECS

    rows = (index.rows[i] for i in index.healthy)
    on_cpu = frozenset((row.codec, row.pixel_format) for row in rows if row.codec in CPU_CODECS)
    if device.type != "cuda" or decoder == "cpu":
        return "cpu", on_cpu, []
    from aim_fast.data.pixels.gpu_decode import trusted_kinds

    trusted, remarks = trusted_kinds(index, _number(device), threads)
    return ("gpu", trusted, remarks) if trusted else ("cpu", on_cpu, remarks)
