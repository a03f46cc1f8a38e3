"""Whether DALI's GPU decoder gives the right frames here, found by trying.

Its decoder cache looks up by coded size and keeps the display size of the first file, so that files of mixed widths
could come out with another file's crop; drivers and cards differ in what they decode. Before it is trusted with a data
set, it decodes a few files of each kind (codec and pixel format), of different sizes where there are any and those of
one coded size first: all at once, all in reverse, and one after another, in one stream. PyAV decodes the same frames.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from aim_fast.data.index.rows import Index, Row
from aim_fast.data.pixels.clip_input import ClipInput, PipelineError
from aim_fast.data.pixels.dali_pipelines import GPU_CODECS, DaliPipeline, decode_inputs, decoding
from aim_fast.data.plan.clip_plan import ClipPlan
from aim_fast.data.video.decode import decode_frames
from aim_fast.data.video.source import held_bytes
from aim_fast.errors import DataError

__all__ = ["trusted_kinds"]

_FILES = 8  # of each kind
_LEVELS = 3.0  # mean difference that two right decoders may have
_LIBRARY = "libnvcuvid.so.1"

Decoding = Callable[..., DaliPipeline]


def trusted_kinds(
    index: Index, device_id: int, threads: int, *, decoder: Decoding = decoding, library: str = _LIBRARY
) -> tuple[frozenset[tuple[str, str]], list[str]]:
    """The (codec, pixel format) of this data set that the GPU decodes as PyAV does, and a line on each other one.

    Where the driver's video library is missing that is the one line. ``decoder`` makes the pipeline that is tried.
    """
    rows = [index.rows[i] for i in index.healthy]
    rows = [row for row in rows if row.plain]  # the others are PyAV's anyway
    kinds = sorted({(row.codec, row.pixel_format) for row in rows if row.codec in GPU_CODECS})
    if kinds and not _loads(library):
        return frozenset(), [
            f"nothing is decoded on the GPU: the driver's video library {library} is not here (start a container with "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
        ]
    trusted, remarks = set(), []
    for codec, pixel_format in kinds:
        fault = _fault(
            [row for row in rows if (row.codec, row.pixel_format) == (codec, pixel_format)],
            decoder,
            device_id,
            threads,
        )
        if fault is None:
            trusted.add((codec, pixel_format))
        else:
            remarks.append(f"{codec} ({pixel_format}) is not decoded on the GPU: {fault}")
    return frozenset(trusted), remarks


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _fault(rows: list[Row], decoder: Decoding, device_id: int, threads: int) -> str | None:
    chosen = _chosen(rows)
    try:
        pipeline = decoder(batch_size=len(chosen), threads=threads, device_id=device_id)
        for batch in (chosen, chosen[::-1], *([row] for row in chosen)):
            fault = _difference(pipeline, batch)
            if fault is not None:
                return fault
    except (PipelineError, RuntimeError, DataError) as error:
        return str(error).splitlines()[0]
    return None


def _chosen(rows: list[Row]) -> list[Row]:
    """Up to eight files: one of each display size, sizes that share a coded size first, then others of any size."""
    sizes: dict[tuple[int, int], Row] = {}
    for row in rows:
        sizes.setdefault((row.height, row.width), row)
    alike: dict[tuple[int, int], list[Row]] = {}
    for (height, width), row in sizes.items():
        alike.setdefault((-(-height // 16), -(-width // 16)), []).append(row)
    firsts = [row for group in sorted(alike.values(), key=len, reverse=True) for row in group]
    seen = {row.path for row in firsts}
    return [*firsts, *(row for row in rows if row.path not in seen)][:_FILES]


def _difference(pipeline: DaliPipeline, rows: list[Row]) -> str | None:
    numbers = [np.unique([0, row.frames // 2, row.frames - 1]).astype(np.int32) for row in rows]
    box = (0.0, 0.0, 1.0, 1.0)
    clips = [
        ClipInput(ClipPlan(n, np.arange(len(n), dtype=np.int32), box), row.path, encoded=held_bytes(row.path))
        for row, n in zip(rows, numbers)
    ]
    pipeline.start(decode_inputs(clips))
    for row, frames, wanted in zip(rows, pipeline.wait().as_cpu(), numbers):
        expected = decode_frames(row.path, wanted, seek=row.seekable)
        found = np.asarray(frames)
        if found.shape != expected.shape:
            return f"{row.path} comes out as {found.shape[2]}x{found.shape[1]}, not {row.width}x{row.height}"
        levels = float(np.abs(found.astype(np.int16) - expected).mean())
        if levels > _LEVELS:
            return f"{row.path} is {levels:.1f} levels off on average"
    return None
