"""Whether DALI's GPU decoder gives the right frames here, found by trying.

Its decoder cache looks up by coded size and keeps the display size of the first file, so that files of mixed widths
could come out with another file's crop; drivers and cards differ in what they decode. Before it is trusted with a data
set, it decodes a few files of each codec, of different sizes where there are any, twice in one stream, and PyAV
decodes the same frames.
"""

from __future__ import annotations

import numpy as np

from aim_fast.data.clip_input import ClipInput, GraphError
from aim_fast.data.decode import decode_frames
from aim_fast.data.index import Index, Row
from aim_fast.data.pipelines import GPU_CODECS, Pipeline, decode_inputs, decoding
from aim_fast.data.plan import ClipPlan
from aim_fast.data.source import held_bytes
from aim_fast.errors import DataError

__all__ = ["trusted_codecs"]

_FILES = 8  # of each codec
_LEVELS = 3.0  # mean difference that two right decoders may have


def trusted_codecs(index: Index, device_id: int, threads: int) -> tuple[frozenset[str], list[str]]:
    """Codecs of this data set that the GPU decodes as PyAV does, and a line on each that it does not."""
    trusted, remarks = set(), []
    rows = [index.rows[i] for i in index.healthy]
    for codec in sorted({row.codec for row in rows} & GPU_CODECS):
        fault = _fault([row for row in rows if row.codec == codec], device_id, threads)
        if fault is None:
            trusted.add(codec)
        else:
            remarks.append(f"{codec} is not decoded on the GPU: {fault}")
    return frozenset(trusted), remarks


def _fault(rows: list[Row], device_id: int, threads: int) -> str | None:
    sizes: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        sizes.setdefault((row.height, row.width), []).append(row)
    alike = sorted(sizes.values(), key=len, reverse=True)
    chosen = [group[0] for group in alike[:_FILES]]
    chosen += alike[0][1 : 1 + max(2 - len(chosen), 0)]
    try:
        pipeline = decoding(batch_size=len(chosen), threads=threads, device_id=device_id)
        for order in (chosen, chosen[::-1]):
            fault = _difference(pipeline, order)
            if fault is not None:
                return fault
    except (GraphError, RuntimeError, DataError) as error:
        return str(error).splitlines()[0]
    return None


def _difference(pipeline: Pipeline, rows: list[Row]) -> str | None:
    numbers = [np.unique([0, row.frames // 2, row.frames - 1]).astype(np.int32) for row in rows]
    box = (0.0, 0.0, 1.0, 1.0)
    clips = [
        ClipInput(ClipPlan(n, np.arange(len(n), dtype=np.int32), box), row.path, encoded=held_bytes(row.path))
        for row, n in zip(rows, numbers)
    ]
    pipeline.start(decode_inputs(clips))
    for row, frames, wanted in zip(rows, pipeline.wait().as_cpu(), numbers):
        expected = decode_frames(row.path, wanted)
        found = np.asarray(frames)
        if found.shape != expected.shape:
            return f"{row.path} comes out as {found.shape[2]}x{found.shape[1]}, not {row.width}x{row.height}"
        levels = float(np.abs(found.astype(np.int16) - expected).mean())
        if levels > _LEVELS:
            return f"{row.path} is {levels:.1f} levels off on average"
    return None
