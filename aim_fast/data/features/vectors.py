"""Vectors of videos on disk, a file for so many videos, each written whole: what is there is complete.

    FOLDER/embed.json                              what the vectors are of, and how many files there are to be
    FOLDER/part-00000.safetensors, .npz, .parquet  vectors [n, D] of some videos, and of each of the n
        video  int64: the number of its video among those of the file (in Parquet its path)
        start, end   float64: seconds that it is of, as a player counts them; NaN for a whole video
        first, last  int64: the same in frames, both included
    FOLDER/NAME.npy, FOLDER/part-00000.json        [T', D] of each video, in order of time, as ActionFormer and OpenTAD
                                                   read them; the rest as JSON

Metadata of a file say of every video its path, its rate in frames a second, how many vectors it has, and where it has
none the reason. The same vectors are the same bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from aim_fast.data.choices import VectorFormat
from aim_fast.errors import DataError, UsageError
from aim_fast.files import replacing, write_whole
from aim_fast.printable import printable

__all__ = ["HEADER", "Moments", "VideoVectors", "check_format", "part_file", "read_part", "write_part"]

HEADER = "embed.json"
_ENDINGS = {name: "json" if name == "npy" else name for name in get_args(VectorFormat)}
_COLUMNS = {"start": np.float64, "end": np.float64, "first": np.int64, "last": np.int64}


@dataclass(frozen=True)
class Moments:
    """Which stretch of a video each of its n vectors is of: [n] each, see above."""

    start: np.ndarray
    end: np.ndarray
    first: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[float, float, int, int]]) -> Moments:
        """From (start, end, first, last) of each vector."""
        columns = zip(*rows) if rows else ((),) * len(_COLUMNS)
        return cls(*(np.array(column, kind) for column, kind in zip(columns, _COLUMNS.values())))


@dataclass(frozen=True)
class VideoVectors:
    """Vectors [n, D] of one video; none and the reason, one line, of one that cannot be read. ``rate`` is 0 where it is
    not known."""

    video: str
    vectors: np.ndarray
    moments: Moments = field(default_factory=lambda: Moments.of([]))
    rate: float = 0.0
    error: str | None = None


def check_format(form: str) -> None:
    """Raises UsageError for Parquet without pyarrow."""
    if form == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UsageError(
                '--format parquet needs pyarrow: pip install "aim-fast[parquet]", or take --format safetensors'
            ) from None


def part_file(folder: Path, form: str, number: int) -> Path:
    """The file that is there when part ``number`` is."""
    return folder / f"part-{number:05d}.{_ENDINGS[form]}"


def write_part(folder: Path, form: str, number: int, videos: Sequence[VideoVectors]) -> None:
    """Writes the vectors of some videos, in their dtype. Raises DataError where the disk refuses."""
    path = part_file(folder, form, number)
    columns: dict[str, np.ndarray] = {"vectors": np.concatenate([video.vectors for video in videos])}
    columns["video"] = np.repeat(np.arange(len(videos)), [len(video.vectors) for video in videos])
    columns |= {name: np.concatenate([getattr(video.moments, name) for video in videos]) for name in _COLUMNS}
    facts = [{"video": v.video, "rate": v.rate, "vectors": len(v.vectors), "error": v.error} for v in videos]
    try:
        if form == "safetensors":
            from safetensors.numpy import save

            write_whole(path, save(columns, {"videos": json.dumps(facts)}))
        elif form == "npz":
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, **columns, videos=np.array(json.dumps(facts)))
            write_whole(path, content.getvalue())
        elif form == "parquet":
            _write_parquet(path, columns, facts)
        else:
            for video in videos:
                if video.error is None:
                    content = io.BytesIO()
                    np.save(content, video.vectors)
                    write_whole(folder / f"{Path(video.video).stem}.npy", content.getvalue())
            times = {name: columns[name].tolist() for name in ("video", *_COLUMNS)}
            unknown = {name: [None if time != time else time for time in times[name]] for name in ("start", "end")}
            write_whole(path, json.dumps({"videos": facts, **times, **unknown}))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); make room or go elsewhere") from None


def read_part(folder: Path, form: str, number: int) -> list[VideoVectors]:
    """The videos of a file with their vectors. Raises DataError for one that is not there or damaged."""
    path = part_file(folder, form, number)
    try:
        columns, facts = _READERS[form](path)
        videos, at = [], 0
        for fact in facts:
            rows = slice(at, at := at + fact["vectors"])
            moments = Moments(*(np.asarray(columns[name][rows], kind) for name, kind in _COLUMNS.items()))
            nothing = np.zeros((0, 0), np.float32)
            empty = VideoVectors(fact["video"], nothing, moments, fact["rate"], fact["error"])
            if fact["error"] is not None:
                videos.append(empty)
            elif form == "npy":
                videos.append(replace(empty, vectors=np.load(folder / f"{Path(fact['video']).stem}.npy")))
            else:
                videos.append(replace(empty, vectors=columns["vectors"][rows]))
        return videos
    except Exception as error:  # of four libraries, each with its own
        raise DataError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); remove it and run aim-fast embed again"
        ) from None


def _write_parquet(path: Path, columns: dict[str, np.ndarray], facts: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = columns["vectors"]
    names = [printable(facts[number]["video"]) for number in columns["video"].tolist()]
    table = pa.table(
        {
            "video": pa.array(names, pa.string()),
            **{name: columns[name] for name in _COLUMNS},
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
        }
    ).replace_schema_metadata({"videos": json.dumps(facts)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from safetensors import safe_open

    from aim_fast.plain_path import plain_path

    with safe_open(plain_path(path), "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["videos"])  # noqa: SIM118


def _read_npz(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files}
    return columns, json.loads(str(columns["videos"]))


def _read_parquet(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns: dict[str, Any] = {name: table[name].to_numpy() for name in _COLUMNS}
    vectors = table["vector"]
    flat = vectors.combine_chunks().flatten().to_numpy()
    columns["vectors"] = flat.reshape(len(vectors), vectors.type.list_size)
    return columns, json.loads(table.schema.metadata[b"videos"])


def _read_json(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    content = json.loads(path.read_text())
    return content, content["videos"]


_READERS = {"safetensors": _read_safetensors, "npz": _read_npz, "parquet": _read_parquet, "npy": _read_json}
